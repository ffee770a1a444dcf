"""Apply at real servers: sites that write at once, and everything that may go wrong meanwhile."""

from __future__ import annotations

import random
import struct
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pymysql
import pytest
from pymysql.constants import CR

from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.mysql.connection import Session, StatementError
from mysqlraft.mysql.schema import ensure_schema
from mysqlraft.replication import apply, apply_session, certify, runs
from mysqlraft.replication.apply import ApplyState
from mysqlraft.replication.batch import BatchBuilder
from mysqlraft.replication.batch_writer import certification, progress
from mysqlraft.replication.certify import Verdict
from mysqlraft.replication.conflicts import ConflictWriter
from mysqlraft.replication.entry import Ddl, Flavour, Payload, PayloadKind, Position, decode
from mysqlraft.replication.policy import Certification
from mysqlraft.replication.state import ReplicationState
from mysqlraft.sandbox.servers import Engine, Server
from tests.harness.pool import LendServers
from tests.replication.harness import SETTLE, SharedLog, SiteUnderTest, checksum, run, settle, wait_for
from tests.replication.recorder import here, record

pytestmark = pytest.mark.timeout(300)

TABLE = "CREATE TABLE s.t (id INT PRIMARY KEY, u INT UNIQUE, v VARCHAR(100))"


@contextmanager
def cluster(
    servers: Sequence[Server], *tables: str, silent: int = 0, files: Path | None = None, **options: Any
) -> Iterator[list[SiteUnderTest]]:
    """Sites with schema `s` and these tables, capturing and applying, and so many members that say nothing. ``files``:
    for those of each site's applier."""
    log = SharedLog(len(servers) + silent)
    sites = []
    for n, server in enumerate(servers, 1):
        own: dict[str, Any] = {} if files is None else {"directory": files / str(n)}
        sites.append(SiteUnderTest(n, server, log, **options, **own))
    for site in sites:
        site.execute("CREATE DATABASE s", *(tables or (TABLE,)), *SETTLE)
    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(site)
        for site in sites:
            wait_capturing(site)
        yield sites


def wait_capturing(site: SiteUnderTest) -> None:
    wait_for(lambda: site.capturing, 30, site)


def units_logged(site: SiteUnderTest) -> int:
    """How many of the site's units are in the log."""
    return sum(len(decode(entry.payload).units) for entry in site.log.entries if entry.origin == site.number)


def same_everywhere(sites: Sequence[SiteUnderTest], *tables: str) -> None:
    for table in (*tables, "mysqlraft.conflicts"):
        sums = [checksum(site, table) for site in sites]
        assert all(each == sums[0] for each in sums), (table, sums)


def test_an_entry_that_the_server_is_lost_at_is_told_all_the_same(
    servers: LendServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever counts what has come back (`pending`) hears of each entry once."""
    told: dict[int, list[int]] = {1: [], 2: []}
    lost = ["the server has gone away"] * 2
    stepped, unit = SiteUnderTest._stepped, BatchBuilder._unit

    def tell(site: SiteUnderTest, entry: Any, *arguments: Any) -> None:
        told[site.number].append(entry.index)
        stepped(site, entry, *arguments)

    def lose(*arguments: Any) -> None:
        if lost:
            raise pymysql.err.OperationalError(CR.CR_SERVER_LOST, lost.pop())
        unit(*arguments)

    monkeypatch.setattr(SiteUnderTest, "_stepped", tell)
    with cluster(servers(2)) as sites:
        monkeypatch.setattr(BatchBuilder, "_unit", lose)
        for number, site in enumerate(sites):
            site.execute(f"INSERT INTO s.t VALUES ({number}, {number}, 'a')")
        settle(sites)
        assert not lost
        for indices in told.values():
            assert indices == list(range(indices[0], indices[-1] + 1))
        same_everywhere(sites, "s.t")


def test_writes_everywhere_with_conflicts(servers: LendServers) -> None:
    """Writers on overlapping keys at three sites; keys change, rows go and come back."""
    with cluster(servers(3)) as sites:

        def write(site: SiteUnderTest) -> None:
            rng = random.Random(site.number)
            with closing(site.server.connect()) as client, client.cursor() as cursor:
                for number in range(150):
                    key, unique = rng.randrange(12), rng.randrange(12)
                    statement = rng.choice(
                        (
                            f"INSERT IGNORE INTO s.t VALUES ({key}, {unique}, '{site.number}-{number}')",
                            f"UPDATE IGNORE s.t SET v = '{site.number}-{number}' WHERE id = {key}",
                            f"UPDATE IGNORE s.t SET u = {unique} WHERE id = {key}",
                            f"UPDATE IGNORE s.t SET id = {unique} WHERE id = {key}",
                            f"DELETE FROM s.t WHERE id = {key}",
                        )
                    )
                    with suppress(pymysql.err.OperationalError):  # a deadlock; an application would repeat it
                        cursor.execute(statement)

        threads = [threading.Thread(target=write, args=(site,)) for site in sites]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        settle(sites)
        same_everywhere(sites, "s.t")
        conflicts = sites[0].execute("SELECT type, COUNT(*) FROM mysqlraft.conflicts GROUP BY type ORDER BY type")
        print(f"{sites[0].server.engine}: the same everywhere after {dict(conflicts)}")
        assert conflicts


def test_a_check_that_depends_on_the_session(
    servers: LendServers, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that its origin took is refused elsewhere: the error says what to do, and that is enough."""
    monkeypatch.setattr("mysqlraft.replication.apply.ROW_ERRORS", 1)
    table = "CREATE TABLE s.t (id INT PRIMARY KEY, at TIMESTAMP, CONSTRAINT early CHECK (HOUR(at) < 12))"
    with cluster(servers(2), table) as sites:
        one, two = sites
        one.execute("SET time_zone = '+12:00'", "INSERT INTO s.t VALUES (1, '2024-01-01 05:00:00')")
        if engine == "mysql":  # MariaDB looks at no CHECK of another site's rows
            assert "drop the CHECK" in two.wait_stopped()
            two.stop()
            two.execute("SET SESSION sql_log_bin = 0", "ALTER TABLE s.t DROP CHECK early")
            two.start()
            wait_capturing(two)
        settle(sites)
        same_everywhere(sites, "s.t")


def test_conflicts_are_described_alike_and_by_type(servers: LendServers) -> None:
    with cluster(servers(2)) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES " + ",".join(f"({n}, {n}, 'old {n}')" for n in range(1, 9)))
        settle(sites)
        for site in sites:
            site.link.hold()
        one.execute(
            "UPDATE s.t SET v = 'one' WHERE id = 1",
            "INSERT INTO s.t VALUES (20, 20, 'one')",
            "DELETE FROM s.t WHERE id = 2",
            "UPDATE s.t SET v = 'one' WHERE id = 3",
            "DELETE FROM s.t WHERE id = 4",
            "UPDATE s.t SET u = 50 WHERE id = 5",
            "INSERT INTO s.t VALUES (30, 30, 'one'), (31, 31, 'one')",
            "INSERT INTO s.t VALUES (40, 40, 'one')",
        )
        two.execute(
            "UPDATE s.t SET v = 'two' WHERE id = 1",
            "INSERT INTO s.t VALUES (20, 21, 'two')",
            "UPDATE s.t SET v = 'two' WHERE id = 2",
            "DELETE FROM s.t WHERE id = 3",
            "DELETE FROM s.t WHERE id = 4",
            "UPDATE s.t SET u = 50 WHERE id = 6",
            "INSERT INTO s.t VALUES (30, 31, 'two')",
            "UPDATE s.t SET id = 40 WHERE id = 7",
        )
        wait_for(lambda: one.link.units_kept == two.link.units_kept == 8, 30, sites)
        one.link.release()
        two.link.release()
        settle(sites)
        same_everywhere(sites, "s.t")
        found = one.execute(
            "SELECT type, row_key, origin, other_origin, image, other_image FROM mysqlraft.conflicts"
            " ORDER BY log_index, unit_number, number"
        )
        assert [(row[0], row[1]) for row in found] == [
            ("update_origin_change", '{"id": 1}'),
            ("insert_exists", '{"id": 20}'),
            ("update_missing", '{"id": 2}'),
            ("delete_recently_updated", '{"id": 3}'),
            ("delete_missing", '{"id": 4}'),
            ("update_unique_exists", '{"u": 50}'),
            ("multiple_unique_conflicts", '{"id": 30}'),
            ("multiple_unique_conflicts", '{"u": 31}'),
            ("update_pkey_exists", '{"id": 40}'),
        ]
        assert all((row[2], row[3]) == (2, 1) for row in found)
        assert found[0][4:] == ('{"id": 1, "u": 1, "v": "two"}', '{"id": 1, "u": 1, "v": "one"}')
        assert found[3][4:] == (None, '{"id": 3, "u": 3, "v": "one"}')


def test_a_killed_server_goes_on_where_it_was(servers: LendServers) -> None:
    """kill -9 of the server while batches come in: nothing is lost, nothing comes twice."""
    with cluster(servers(2), "CREATE TABLE s.t (id INT PRIMARY KEY, n INT)", batch_rows=50) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (0, 0)")
        for kill in range(3):
            two.link.limit = len(one.log.entries)
            with closing(one.server.connect()) as client, client.cursor() as cursor:
                for number in range(400):
                    # An increment: applied twice or not at all it would show.
                    run(cursor, f"INSERT INTO s.t VALUES ({kill * 1000 + number + 1}, 0)")
            before = two.applier.status.index
            two.link.limit = None
            wait_for(lambda at=before: two.applier.status.index > at, 30, two)  # type: ignore[misc]
            two.server.kill()
            two.server.start()
        settle(sites)
        same_everywhere(sites, "s.t")
        assert two.applier.status.retries > 0
        assert two.applier.status.fallbacks == 0, "a unit came twice"


def test_killed_connections_and_new_daemons(servers: LendServers) -> None:
    """Apply's connection is killed at random, its daemon replaced: a COMMIT whose answer is lost counts once."""
    with cluster(servers(2), "CREATE TABLE s.t (id INT PRIMARY KEY, n INT)", batch_rows=20) as sites:
        one, two = sites
        stop = threading.Event()
        kills = 0

        def disturb() -> None:
            nonlocal kills
            with closing(two.server.connect()) as client, client.cursor() as cursor:
                while not stop.wait(0.05):
                    for (owner,) in run(cursor, "SELECT IS_USED_LOCK('mysqlraft.apply')"):
                        if owner:
                            with suppress(pymysql.err.MySQLError):  # it was faster
                                cursor.execute(f"KILL {owner}")
                                kills += 1

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            with closing(one.server.connect()) as client, client.cursor() as cursor:
                for number in range(1000):
                    run(cursor, f"INSERT INTO s.t VALUES ({number}, 0)")
                    if number % 250 == 100:
                        two.stop()
                        two.start()
        finally:
            stop.set()
            thread.join()
        settle(sites)
        same_everywhere(sites, "s.t")
        print(f"{one.server.engine}: {kills} connections killed, {two.applier.status}")
        assert two.applier.status.fallbacks == 0, "a unit came twice"


def test_daemons_come_back_while_a_member_is_silent_and_when_it_is_not(
    servers: LendServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row keys are in files meanwhile, and a start reads little of the log; then the files go, and what certification
    knows of tables is kept at the server."""
    monkeypatch.setattr(certify, "GENERATION", 20)
    monkeypatch.setattr(runs, "SMALLEST", 20)
    load: Any = ReplicationState.load
    start: Any = ReplicationState.__init__
    for defaults in (load.__func__.__kwdefaults__, start.__kwdefaults__):
        monkeypatch.setitem(defaults, "checkpoint_every", 10)

    def write(first: int) -> None:
        for number in range(first, first + 150):
            one.execute(f"INSERT INTO s.t VALUES ({number}, {number}, 'one')")
            two.execute(f"INSERT INTO s.t VALUES ({number % 50}, {-number}, 'two') ON DUPLICATE KEY UPDATE v = 'too'")
        settle(sites)
        same_everywhere(sites, "s.t")

    def come_back() -> int:
        """How many entries were read again."""
        before = two.link.fetched
        two.stop()
        two.start()
        wait_capturing(two)
        return two.link.fetched - before

    def third_site_speaks(sequence: int, kind: PayloadKind) -> int:
        index, flavour = two.applier.status.index, decode(one.log.entries[-1].payload).flavour
        payload = Payload(kind, flavour, index, Position("binlog", 4), ("binlog", 4))
        one.log.append(3, 1, sequence, payload.encode())
        return index

    with cluster(servers(2), silent=1, files=tmp_path) as sites:
        one, two = sites
        write(0)
        read, entries = come_back(), len(one.log.entries)
        print(f"{one.server.engine}: {read} of {entries} entries were read again")
        assert 0 < read < entries // 2
        write(200)
        assert two.execute("SELECT COUNT(*) FROM mysqlraft.certification") == [(0,)]
        third_site_speaks(1, PayloadKind.OPEN)
        third_site_speaks(2, PayloadKind.MARK)
        write(400)
        assert two.execute("SELECT COUNT(*) FROM mysqlraft.certification") == [(1,)]
        index = third_site_speaks(3, PayloadKind.MARK)
        wait_for(lambda: not list(tmp_path.rglob("memo-*")), 30, sites)
        assert come_back() < len(one.log.entries) - index + 20
        write(600)


def test_the_application_holds_a_lock(servers: LendServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply_session, "LOCK_WAIT", 2)
    with cluster(servers(2)) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'old'), (2, 2, 'old')")
        settle(sites)
        with closing(two.server.connect(autocommit=False)) as client, client.cursor() as cursor:
            run(cursor, "SELECT * FROM s.t WHERE id = 1 FOR UPDATE")
            one.execute("UPDATE s.t SET v = 'new' WHERE id IN (1, 2)")
            wait_for(lambda: two.applier.status.state is ApplyState.RETRYING, 30, two)
            assert "1205" in two.applier.status.reason
            # Between its attempts apply holds nothing that others may wait for.
            two.execute("UPDATE s.t SET v = 'local' WHERE id = 2")
            client.rollback()
        settle(sites)
        assert two.applier.status.state is ApplyState.RUNNING
        same_everywhere(sites, "s.t")


def test_a_server_that_refuses_writes(servers: LendServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply_session, "METADATA_LOCK_WAIT", 1)
    with cluster(servers(2)) as sites:
        one, two = sites
        # The account of these tests is an administrator: only this stops it, as it would anybody.
        with closing(two.server.connect()) as client, client.cursor() as cursor:
            run(cursor, "SET SESSION lock_wait_timeout = 30", "FLUSH TABLES WITH READ LOCK")
            one.execute("INSERT INTO s.t VALUES (1, 1, 'x')")
            wait_for(lambda: two.applier.status.state is ApplyState.RETRYING, 60, two)
            assert "SHOW PROCESSLIST" in two.applier.status.reason
            assert two.execute("SELECT COUNT(*) FROM s.t") == [(0,)]
            run(cursor, "UNLOCK TABLES")
        settle(sites)
        same_everywhere(sites, "s.t")


def test_a_table_that_does_not_fit_stops_apply_there(servers: LendServers) -> None:
    with cluster(servers(2), TABLE, "CREATE TABLE s.other (id INT PRIMARY KEY, name VARCHAR(10))") as sites:
        one, two = sites
        two.link.limit = len(one.log.entries)
        before = units_logged(one)
        # Only here: as an administrator would who does not know better.
        with closing(two.server.connect()) as client, client.cursor() as cursor:
            run(cursor, "SET SESSION sql_log_bin = 0", "ALTER TABLE s.other MODIFY name VARCHAR(20)")
        for number, statement in enumerate(
            (
                "INSERT INTO s.t VALUES (1, 1, 'before')",
                "INSERT INTO s.other VALUES (1, 'x')",
                "INSERT INTO s.t VALUES (2, 2, 'after')",
            ),
            1,
        ):
            # Each in an entry of its own.
            one.execute(statement)
            wait_for(lambda n=number: units_logged(one) >= before + n, 30, one)  # type: ignore[misc]
        two.link.limit = None
        reason = two.wait_stopped()
        assert "s.other: column 2 is name VARCHAR(40)" in reason
        assert "name varchar(20) at this site: the size differs" in reason
        assert f"log index {two.applier.status.index + 1}," in reason
        assert two.execute("SELECT id FROM s.t") == [(1,)]
        print(reason)
        with closing(two.server.connect()) as client, client.cursor() as cursor:
            run(cursor, "SET SESSION sql_log_bin = 0", "DROP TABLE s.other")
        two.stop()
        two.start()
        assert "s.other does not exist at this site" in two.wait_stopped()
        with closing(two.server.connect()) as client, client.cursor() as cursor:
            run(
                cursor,
                "SET SESSION sql_log_bin = 0",
                # More columns at the end are allowed, and take their defaults.
                "CREATE TABLE s.other (id INT PRIMARY KEY, name VARCHAR(10), more INT DEFAULT 7)",
            )
        two.stop()
        two.start()
        wait_capturing(two)
        settle(sites)
        same_everywhere(sites, "s.t")
        assert two.execute("SELECT * FROM s.other") == [(1, "x", 7)]


def test_a_row_too_large_for_the_server(servers: LendServers) -> None:
    """The server would end the connection, again and again."""
    with cluster(servers(2), "CREATE TABLE s.t (id INT PRIMARY KEY, b LONGBLOB)") as sites:
        one, two = sites
        two.stop()
        two.execute("SET GLOBAL max_allowed_packet = 1048576")
        two.start()
        wait_capturing(two)
        one.execute(
            "INSERT INTO s.t VALUES (1, REPEAT('x', 700000))", "INSERT INTO s.t VALUES (2, REPEAT('y', 900000))"
        )
        reason = two.wait_stopped()
        assert "SET GLOBAL max_allowed_packet = 4194304" in reason
        two.execute("SET GLOBAL max_allowed_packet = 67108864")
        two.stop()
        two.start()
        wait_capturing(two)
        settle(sites)
        same_everywhere(sites, "s.t")


def test_many_large_conflicts_in_one_batch(servers: LendServers) -> None:
    """Their history is cut into statements and packets that every server takes; what is cut is so at every site."""
    table = "CREATE TABLE s.t (id INT PRIMARY KEY, v TEXT CHARACTER SET utf8mb4, UNIQUE KEY (v(8)))"
    with cluster(servers(2), table) as sites:
        one, two = sites
        two.stop()
        two.execute("SET GLOBAL max_allowed_packet = 1048576")
        two.start()
        wait_capturing(two)
        for site in sites:
            site.link.hold()
        # 16,383 characters of four bytes each; each row and its key are larger than what is kept of them.
        one.execute(
            "INSERT INTO s.t WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 120)"
            " SELECT n, CONCAT(LPAD(n, 8, '0'), REPEAT(_utf8mb4 0xF09F9880, 16000)) FROM n"
        )
        two.execute(
            "INSERT INTO s.t WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 120)"
            " SELECT n + 1000, CONCAT(LPAD(n, 8, '0'), REPEAT(_utf8mb4 0xF09F9883, 16000)) FROM n"
        )
        wait_for(lambda: one.link.units_kept == two.link.units_kept == 1, 30, sites)
        one.link.release()
        two.link.release()
        settle(sites)
        same_everywhere(sites, "s.t")
        found = two.execute(
            "SELECT COUNT(*), MAX(LENGTH(row_key)), MAX(LENGTH(image)), MAX(image LIKE '%(cut: %')"
            " FROM mysqlraft.conflicts"
        )
        ((count, *lengths, cut),) = found
        assert (count, cut) == (120, 1)
        assert all(16000 < length < 16500 for length in lengths)


def test_a_backlog_of_conflicts_takes_few_transactions(servers: LendServers) -> None:
    """Two sites write one row again and again; each transaction is an entry of its own, and all of them wait."""
    with cluster(servers(2), capture={"mark_seconds": 600}) as sites:
        sites[0].execute("INSERT INTO s.t VALUES (1, 1, 'first')")
        settle(sites)
        for site in sites:
            site.link.hold()
        for number in range(150):
            for site in sites:
                site.execute(f"UPDATE s.t SET v = '{site.number}-{number}' WHERE id = 1")
        wait_for(lambda: all(site.link.units_kept >= 150 for site in sites), 30, sites)
        for site in sites:
            site.link.limit = len(site.log.entries)
            site.wait_applied(site.link.limit)
        for site in sites:
            site.link.release()
        before = [(site.applier.status.index, site.applier.status.transactions) for site in sites]
        for site in sites:
            site.link.limit = None
        for site, (index, transactions) in zip(sites, before, strict=True):
            site.wait_applied()
            entries = site.applier.status.index - index
            transactions = site.applier.status.transactions - transactions
            assert entries > 200
            assert transactions <= entries / 10, (site, entries, transactions)
        settle(sites)
        same_everywhere(sites, "s.t")
        assert sites[0].execute("SELECT COUNT(*) FROM mysqlraft.conflicts")[0][0] > 0


def test_a_large_state_is_written_in_pieces(server: Server) -> None:
    state = random.Random(1).randbytes(1000)
    with closing(Session(server.connect)) as session:
        ensure_schema(session.query)
        for size in (1, 15, 16, 17, 1000):
            statements = progress(size, state[:size], 64)
            assert max(map(len, statements)) < 64 + 60
            session.run(statements)
            assert apply_session.read_progress(session) == (size, state[:size])
            statements = certification(state[:size], 64)
            assert max(map(len, statements)) < 64 + 60
            session.run(statements)
            assert apply_session.read_certification(session) == state[:size]


class _LastWriters:
    """Every entry wrote the same rows."""

    def __init__(self, payload: Payload) -> None:
        self._encoded = payload.encode()
        self.read_again: list[int] = []

    def indices_of(self, index: int) -> Sequence[int]:
        return [index]

    def read(self, indices: Sequence[int]) -> list[Payload]:
        self.read_again += indices
        return [decode(self._encoded) for _ in indices]


def test_the_rows_of_last_writers_take_bounded_memory(servers: LendServers) -> None:
    """Conflicts with 100 entries of 0.9 MB each, twice; small entries are read once."""
    (server,) = servers(1)
    with closing(server.connect()) as client, client.cursor() as cursor:
        run(cursor, "CREATE DATABASE s", "CREATE TABLE s.t (id INT PRIMARY KEY, v LONGTEXT)")
        begin = here(server)
        run(cursor, "INSERT INTO s.t VALUES (1, REPEAT('x', 900000))", "INSERT INTO s.t VALUES (2, 'x')")
    large, small = [(payload, unit) for payload in record(server, begin) for unit in payload.units]
    for (payload, unit), most, reads in ((large, 40 << 20, 200), (small, 1 << 20, 100)):
        entries = _LastWriters(replace(payload, units=[unit]))
        (key,) = struct.unpack("<Q", unit.keys)
        change = unit.changes[0]
        with closing(ServerKeySource(server.connect)) as source:
            writer = ConflictWriter(source, entries)
            tracemalloc.start()
            for number in range(200):
                met = Certification(1000, 1, False, Verdict.CONFLICT, [(key, 1 + number % 100, 2)])
                (conflict,) = writer.describe(met, 0, [(payload.tables[change.table], change, 0)], "")
                assert conflict.other_index == 1 + number % 100
            held, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        print(f"{held:,} bytes held, {peak:,} at most, {len(entries.read_again)} reads")
        assert held < most
        assert len(entries.read_again) == reads


def test_units_in_parts(servers: LendServers) -> None:
    """Transactions of several entries: atomic, whether clean, in conflict or written again."""
    with cluster(servers(2), capture={"part_bytes": 4096}) as sites:
        one, two = sites
        rows = ",".join(f"({n}, {n}, REPEAT('x', 90))" for n in range(1000))
        one.execute(f"INSERT INTO s.t VALUES {rows}")
        settle(sites)
        same_everywhere(sites, "s.t")
        assert len(one.log.of_kind(PayloadKind.PART)) > 10
        for site in sites:
            site.link.hold()
        one.execute("UPDATE s.t SET v = CONCAT('one', id)")
        two.execute("UPDATE s.t SET v = CONCAT('two', id) WHERE id < 500")
        wait_for(lambda: one.link.units_kept == two.link.units_kept == 1, 30, sites)
        two.link.release()
        one.link.release()
        settle(sites)
        same_everywhere(sites, "s.t")
        assert one.execute("SELECT COUNT(*) FROM s.t WHERE v LIKE 'one%'") == [(1000,)]
        ((count, note),) = one.execute("SELECT COUNT(*), MAX(resolution) FROM mysqlraft.conflicts")
        assert count == 500, note


def test_the_parts_of_a_unit_are_read_once_for_all_conflicts_with_it(servers: LendServers) -> None:
    """Rows that it wrote several times included: the last is what the history shows."""
    with cluster(servers(2), capture={"part_bytes": 4096}) as sites:
        one, two = sites
        rows = ",".join(f"({n}, {n}, REPEAT('x', 90))" for n in range(3000))
        one.execute(f"INSERT INTO s.t VALUES {rows}")
        settle(sites)
        for site in sites:
            site.link.hold()
        with closing(one.server.connect()) as client, client.cursor() as cursor:
            run(
                cursor,
                "BEGIN",
                "UPDATE s.t SET v = CONCAT('one', id)",
                "UPDATE s.t SET u = 10000 + u WHERE id < 10",
                "DELETE FROM s.t WHERE id BETWEEN 5 AND 9",
                "UPDATE s.t SET u = 5, v = 'five' WHERE id = 2999",
                "COMMIT",
            )
        with closing(two.server.connect()) as client, client.cursor() as cursor:
            for number in range(50):
                run(cursor, f"UPDATE s.t SET v = 'two' WHERE id = {number * 51}")
        wait_for(lambda: one.link.units_kept == 1 and two.link.units_kept == 50, 30, sites)
        parts = len(one.link.kept)
        assert parts > 20
        one.link.release()
        for site in sites:
            site.wait_applied()
        for site in sites:
            site.link.fetched = 0
        two.link.release()
        settle(sites)
        same_everywhere(sites, "s.t")
        found = one.execute(
            "SELECT row_key, type, other_image FROM mysqlraft.conflicts ORDER BY log_index, unit_number"
        )
        assert len(found) == 51
        assert found[0] == ('{"id": 0}', "update_origin_change", '{"id": 0, "u": 10000, "v": "one0"}')
        assert found[1] == ('{"u": 0}', "update_missing", None)
        assert found[2] == ('{"id": 51}', "update_origin_change", '{"id": 51, "u": 51, "v": "one51"}')
        for site in sites:
            # All parts once, and one for each conflict.
            assert site.link.fetched <= parts + 50 + 10, (site.link.fetched, parts)


def _has_retried(site: SiteUnderTest) -> bool:
    return site.applier.status.retries > 3


def test_no_room_for_temporary_files(servers: LendServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply says so while there is none, and goes on once there is."""
    with cluster(servers(2), capture={"part_bytes": 4096}) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES " + ",".join(f"({n}, {n}, REPEAT('x', 90))" for n in range(300)))
        settle(sites)
        for site in sites:
            site.link.hold()
        one.execute("UPDATE s.t SET v = 'one'")
        two.execute("UPDATE s.t SET v = 'two' WHERE id = 7")
        wait_for(lambda: one.link.units_kept == two.link.units_kept == 1, 30, sites)
        one.link.release()
        for site in sites:
            site.wait_applied()
        gone = tmp_path / "gone"
        monkeypatch.setattr(tempfile, "tempdir", str(gone))
        two.link.release()
        for site in sites:
            wait_for(partial(_has_retried, site), 30, site)
            assert site.applier.status.state is ApplyState.RETRYING
            assert str(gone) in site.applier.status.reason
            assert "TMPDIR" in site.applier.status.reason
        gone.mkdir()
        settle(sites)
        same_everywhere(sites, "s.t")
        for site in sites:
            assert site.applier.status.state is ApplyState.RUNNING
            assert not site.applier.status.reason


def test_no_room_for_the_servers_temporary_files(servers: LendServers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction larger than binlog_cache_size needs some: it is tried again until it gets it."""
    monkeypatch.setattr(apply, "_PAUSES", (0.01,))
    with cluster(servers(2)) as sites:
        one, two = sites
        temporary, gone = two.server.directory / "tmp", two.server.directory / "gone"
        temporary.rename(gone)
        one.execute("INSERT INTO s.t VALUES " + ",".join(f"({n}, {n}, REPEAT('x', 90))" for n in range(1500)))
        wait_for(lambda: two.applier.status.retries > 3 * apply.ROW_ERRORS, 60, two)
        assert two.applier.status.state is ApplyState.RETRYING
        gone.rename(temporary)
        settle(sites)
        same_everywhere(sites, "s.t")


@pytest.mark.parametrize(
    ("code", "text", "may_pass"),
    [
        (1005, 'Can\'t create table `d`.`n` (errno: 135 "No more room in record file")', True),
        (1005, 'Can\'t create table `d`.`n` (errno: 150 "Foreign key constraint is incorrectly formed")', False),
        (1026, "Error writing file '/var/lib/mysql/d/n.frm' (Errcode: 28 \"No space left on device\")", True),
        (1296, "Got error 59 'Temp file write failure' from InnoDB", True),
        (1878, "Temporary file write failure.", True),
        (3675, "Create table/tablespace 'n' failed, as disk is full", True),
        (3, "Error writing file '/tmp/MLfd=40' (OS errno 28 - No space left on device)", True),
        (1050, "Table 'n' already exists", False),
        (1062, "Duplicate entry 'errno: 28' for key 'v'", False),
    ],
)
def test_what_a_server_says_whose_disk_is_full(code: int, text: str, may_pass: bool) -> None:
    """A statement of another site is tried again; one that cannot be run stops the site."""
    assert apply_session.retryable(StatementError(0, code, text)) is may_pass


def test_rows_and_statements_of_the_other_kind_of_server_are_refused(servers: LendServers, engine: Engine) -> None:
    """Their events would not be understood, or worse."""
    other = Flavour.MYSQL if engine == "mariadb" else Flavour.MARIADB
    place = Position("binlog.000001", 4)
    statement = Ddl([("s", "x")], b"CREATE TABLE s.x (id INT PRIMARY KEY)", "", {}, 0)
    with cluster(servers(1)) as (site,):
        begin = here(site.server)
        site.execute("INSERT INTO s.t VALUES (1, 1, 'x')")
        rows = record(site.server, begin)[0]
        for number, payload in enumerate(
            (
                Payload(PayloadKind.UNITS, other, 0, place, (place.file, 4), rows.tables, rows.units),
                Payload(PayloadKind.DDL, other, 0, place, (place.file, 4), ddl=statement),
            ),
            1,
        ):
            site.stop()
            del site.log.entries[site.applier.status.index :]
            opening = Payload(PayloadKind.OPEN, other, 0, place, (place.file, 4))
            site.log.append(2, number, 1, opening.encode())
            index = site.log.append(2, number, 2, payload.encode())
            site.start()
            reason = site.wait_stopped()
            assert f"log index {index}, from site 2" in reason
            assert "all sites of a cluster must be of one kind" in reason


def test_the_daemons_schema_of_a_newer_version_is_refused(servers: LendServers) -> None:
    with cluster(servers(1)) as (site,):
        site.stop()
        site.execute("UPDATE mysqlraft.version SET version = 99")
        site.start()
        assert "upgrade" in site.wait_stopped()
