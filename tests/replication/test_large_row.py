"""Rows larger than a part of a unit, and larger than the servers take. As large as they take: `tests/daemon`."""

from __future__ import annotations

import random

import pytest

from mysqlraft.binlog.place import TransactionStops
from mysqlraft.replication.entry import PayloadKind, decode
from mysqlraft.sandbox.servers import Server
from tests.harness.pool import LendServers, ServerFactory
from tests.replication.capture_rig import capturing, run
from tests.replication.harness import settle, wait_for
from tests.replication.test_apply import cluster, same_everywhere

pytestmark = pytest.mark.timeout(300)

TABLE = "CREATE TABLE s.t (id INT PRIMARY KEY, u VARCHAR(20) UNIQUE, v INT, b LONGBLOB, t LONGTEXT, UNIQUE KEY (t(10)))"
PART_BYTES = 1 << 12


def test_large_rows_among_others(servers: LendServers) -> None:
    """Every kind of change, in one transaction with small rows, and what is prepared."""
    rng = random.Random(1)
    with cluster(servers(2), TABLE, capture={"part_bytes": PART_BYTES}) as sites:
        one, two = sites
        for number in range(12):
            size = rng.choice([10, 3000, 4000, 5000, 20_000, 100_000])
            text = f"CONCAT(LPAD({number}, 10, '0'), REPEAT('é', {rng.choice([0, 5, 10_000])}))"
            one.execute(f"INSERT INTO s.t VALUES ({number}, 'u{number}', 0, REPEAT('x', {size}), {text})")
        settle(sites)
        same_everywhere(sites, "s.t")
        two.execute("UPDATE s.t SET v = v + 1", "UPDATE s.t SET id = id + 100 WHERE id < 6")
        settle(sites)
        one.execute("BEGIN", "UPDATE s.t SET v = v + 1, b = CONCAT(b, 'y')", "DELETE FROM s.t WHERE id = 7", "COMMIT")
        one.execute(
            "XA START 'x'",
            "UPDATE s.t SET v = v + 1",
            "INSERT INTO s.t VALUES (50, 'u50', 0, REPEAT('z', 60000), 'fifty')",
            "XA END 'x'",
            "XA PREPARE 'x'",
            "XA COMMIT 'x'",
        )
        settle(sites)
        same_everywhere(sites, "s.t")
        assert two.execute("SELECT SUM(v) FROM s.t") == [(33,)]
        two.execute("DELETE FROM s.t")
        settle(sites)
        assert one.execute("SELECT COUNT(*) FROM s.t") == [(0,)]
        assert max(len(entry.payload) for entry in one.log.entries) < 4 * PART_BYTES


def test_conflicts_of_large_rows(servers: LendServers) -> None:
    """Updated at both sites, moved, deleted, and in each other's way under a unique key."""
    with cluster(servers(2), TABLE, capture={"part_bytes": PART_BYTES}) as sites:
        one, two = sites
        for number in range(8):
            one.execute(f"INSERT INTO s.t VALUES ({number}, 'u{number}', 0, REPEAT('x', 30000), 't{number}')")
        settle(sites)
        for site in sites:
            site.link.hold()
        updates = [f"UPDATE s.t SET v = {n}, b = REPEAT('a', 25000) WHERE id = {n}" for n in range(8)]
        one.execute("BEGIN", *updates, "COMMIT")
        two.execute(
            "BEGIN",
            "UPDATE s.t SET v = 10 WHERE id IN (0, 1)",
            "DELETE FROM s.t WHERE id = 2",
            "UPDATE s.t SET id = 30 WHERE id = 3",
            "UPDATE s.t SET u = 'new' WHERE id = 4",
            "INSERT INTO s.t VALUES (40, 'u40', 0, REPEAT('n', 30000), 't40')",
            "COMMIT",
        )
        one.execute("INSERT INTO s.t VALUES (41, 'u40', 1, REPEAT('m', 30000), 't41')")
        wait_for(lambda: one.link.units_kept == 2 and two.link.units_kept == 1, 30, sites)
        one.link.release()
        two.link.release()
        settle(sites)
        same_everywhere(sites, "s.t")
        assert one.execute("SELECT id, v FROM s.t ORDER BY id")[:2] == [(0, 10), (1, 10)]
        found = one.execute("SELECT type, COUNT(*), MIN(LENGTH(other_image)) FROM mysqlraft.conflicts GROUP BY type")
        print(found)
        assert {"update_origin_change", "insert_exists"} <= {kind for kind, _, _ in found}
        assert all(length > 1000 for _, _, length in found)


def test_too_large_for_the_servers(server: Server) -> None:
    """It is refused by its name, with nothing of its transaction in force; what is raised helps."""
    run(
        server,
        "CREATE DATABASE s",
        "CREATE TABLE s.t (id INT, k VARCHAR(9), a LONGTEXT, b LONGTEXT, PRIMARY KEY (id, k))",
    )
    run(server, "SET GLOBAL max_allowed_packet = 1048576")
    with capturing(server) as rig:
        run(server, "INSERT INTO s.t VALUES (1, 'one', 'x', 'y')")
        rig.wait(lambda: rig.payloads)
        state = rig.state()
        run(
            server,
            "BEGIN",
            "INSERT INTO s.t VALUES (2, 'two', REPEAT('a', 600000), '')",
            "UPDATE s.t SET b = REPEAT('b', 600000) WHERE id = 2",
            "COMMIT",
        )
        rig.wait(lambda: rig.error is not None)
        assert isinstance(rig.error, TransactionStops)
        reason = str(rig.error)
        print(reason)
        assert 's.t: the row with primary key {"id": 2, "k": "two"} has 1200' in reason
        assert "SET GLOBAL max_allowed_packet = 2097152" in reason
        assert all(not payload.last for payload in rig.payloads[1:])
    run(server, "SET GLOBAL max_allowed_packet = 2097152")
    with capturing(server, state) as rig:
        run(server, "INSERT INTO s.t VALUES (3, 'x', '', '')")
        rig.wait(lambda: rig.capture.status()["transactions"] == 2)
    assert any(decode(payload.encode()).kind is PayloadKind.PART for payload in rig.payloads)


@pytest.mark.parametrize("engine", ["mariadb"], indirect=True)  # MySQL's are on the beginning of a value at most
@pytest.mark.parametrize(("character", "size"), [("a", 700_000), ("é", 100_000)])
def test_a_large_value_in_a_unique_key(server_factory: ServerFactory, character: str, size: int) -> None:
    """MariaDB has them on values of any size; a row of 700,000 bytes fits into a statement of a megabyte just so."""
    servers = [server_factory(options={"max_allowed_packet": "1M"}) for _ in range(2)]
    table = "CREATE TABLE s.t (id INT PRIMARY KEY, v LONGTEXT COLLATE utf8mb4_general_ci, UNIQUE KEY (v) USING HASH)"
    with cluster(servers, table) as sites:
        one, two = sites
        for site in sites:
            site.link.hold()
            site.execute(f"INSERT INTO s.t VALUES ({site.number}, REPEAT('{character}', {size}))")
            wait_for(lambda site=site: site.link.units_kept == 1, 30, site)  # type: ignore[misc]
        for site in sites:
            site.link.release()
        settle(sites)
        same_everywhere(sites)
        assert one.execute("SELECT id, CHAR_LENGTH(v) FROM s.t") == [(2, size)]
        assert two.execute("SELECT id, CHAR_LENGTH(v) FROM s.t") == [(2, size)]
