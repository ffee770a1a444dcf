"""A unit in parts whose rest does not come: the server is another one, the connection broke, the origin is at fault."""

from __future__ import annotations

import os
import struct
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pymysql
import pytest

from benchmarks.star import follow
from mysqlraft.replication.entry import Change, ChangeKind, Flavour, Payload, PayloadKind, Position, Unit
from mysqlraft.sandbox.servers import Server
from tests.harness.pool import LendServers
from tests.replication.harness import SETTLE, SharedLog, SiteUnderTest, run, settle, wait_for
from tests.replication.test_apply import cluster, same_everywhere, wait_capturing

pytestmark = pytest.mark.timeout(300)

PART_BYTES = 1 << 15
TABLE = "CREATE TABLE s.t (id INT PRIMARY KEY, u INT UNIQUE, v TEXT)"


class Behind(SiteUnderTest):
    """A site whose server is found by a name that may become another server's."""

    def __init__(self, name: Path, number: int, server: Server, log: SharedLog, **options: Any) -> None:
        super().__init__(number, server, log, **options)
        self._name = name
        self._name.symlink_to(server.socket)

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"unix_socket": str(self._name)}

    def fail_over(self, server: Server) -> None:
        """The server is gone, and the other one has its name."""
        following = self._name.with_suffix(".next")
        following.symlink_to(server.socket)
        following.replace(self._name)
        assert self.server.pid is not None
        self.server.kill()
        self.server = server


def promote(source: Server, replica: Server) -> None:
    """Ends native replication once the replica has all that the source holds."""
    with closing(source.connect()) as connection, connection.cursor() as cursor:
        mysql = source.engine == "mysql"
        executed = run(cursor, f"SELECT @@global.{'gtid_executed' if mysql else 'gtid_binlog_pos'}")[0][0]
    with closing(replica.connect()) as connection, connection.cursor() as cursor:
        wait = "WAIT_FOR_EXECUTED_GTID_SET" if mysql else "MASTER_GTID_WAIT"
        assert run(cursor, f"SELECT {wait}('{executed}', 30)") == [(0,)]
        run(cursor, *(("STOP REPLICA", "RESET REPLICA ALL") if mysql else ("STOP SLAVE", "RESET SLAVE ALL")))


def large(start: int, count: int, text: str) -> list[str]:
    """A transaction larger than what a broken connection may still hold."""
    rows = [f"INSERT INTO s.t VALUES ({start + n}, {start + n}, REPEAT('{text}', 20000))" for n in range(count)]
    return ["BEGIN", *rows, "COMMIT"]


def parts(log: SharedLog) -> int:
    return len(log.of_kind(PayloadKind.PART))


@pytest.mark.parametrize("next_one", ["large", "small"])
def test_another_server_whose_next_transaction_is_another_one(
    servers: LendServers, tmp_path: Path, next_one: str
) -> None:
    """A replica is promoted that does not have the transaction of which parts have left: nothing of it is anywhere."""
    first, promoted, other = servers(3)
    log = SharedLog(2)
    one = Behind(tmp_path / "sock", 1, first, log, capture={"part_bytes": PART_BYTES})
    two = SiteUnderTest(2, other, log)
    follow(first, [promoted])
    for site in (one, two):
        site.execute("CREATE DATABASE s", TABLE, *SETTLE)
    with one, two:
        wait_capturing(one)
        wait_capturing(two)
        one.execute("INSERT INTO s.t VALUES (1, 1, 'before')")
        settle([one, two])
        # Nothing more is applied here, so that the replica's progress row is that of the server.
        one.link.limit = len(log.entries)
        wait_for(lambda: one.applier.status.index == one.link.limit, 30, one)
        promote(first, promoted)
        missed = {"large": large(1000, 400, "b"), "small": ["INSERT INTO s.t VALUES (1000, 1000, 'b')"]}[next_one]
        with closing(promoted.connect()) as connection, connection.cursor() as cursor:
            run(cursor, *missed)

        def fail_over(session: int, sequence: int, payload: bytes) -> bool:
            if parts(log) == 2 and one.server is first:
                one.fail_over(promoted)
            return propose(session, sequence, payload)

        propose, one.link.propose = one.link.propose, fail_over  # type: ignore[method-assign]
        with suppress(pymysql.err.OperationalError):  # The server is killed before or after it answers.
            one.execute(*large(100, 400, "a"))
        wait_for(lambda: one.server is promoted and one.link.limit is not None, 30, one)
        one.link.limit = None
        settle([one, two])
        same_everywhere([one, two], "s.t")
        assert two.execute("SELECT COUNT(*) FROM s.t WHERE id < 1000") == [(1,)]
        assert two.execute("SELECT COUNT(*) FROM s.t") == [(401 if next_one == "large" else 2,)]
        assert os.readlink(tmp_path / "sock") == str(promoted.socket)


def test_the_same_server_again(servers: LendServers) -> None:
    """All parts leave again, in a session of their own: the unit is applied once, and whole."""
    with cluster(servers(2), TABLE, capture={"part_bytes": PART_BYTES}) as sites:
        one, two = sites
        cuts = [2, 5]

        def cut(session: int, sequence: int, payload: bytes) -> bool:
            done = propose(session, sequence, payload)
            if cuts and parts(one.log) == cuts[0]:
                del cuts[0]  # Once: what comes next, from a capture without a connection, changes no count.
                capture = one.capture
                assert capture is not None
                assert capture._dump is not None
                capture._dump.abort()
            return done

        propose, one.link.propose = one.link.propose, cut  # type: ignore[method-assign]
        one.execute(*large(1, 400, "a"), "INSERT INTO s.t VALUES (5000, 5000, 'after')")
        settle(sites)
        same_everywhere(sites, "s.t")
        assert two.execute("SELECT COUNT(*) FROM s.t") == [(401,)]
        assert not cuts


def test_an_origin_at_fault_stops_nobody(servers: LendServers) -> None:
    """Its session is void at every site; it opens another one, and what it committed is replicated."""
    with cluster(servers(2), TABLE) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 'a')")
        settle(sites)
        nowhere = Position("f", 4), ("f", 4)
        unit = Unit(0, 0, struct.pack("<Q", 7), [Change(0, ChangeKind.UPDATE, b"", 1, b"")])
        table = [b"\x01s\x00\x01t\x00"]
        for number, wrong in enumerate(
            [
                b"garbage",
                Payload(PayloadKind.OPEN, Flavour.MYSQL, 0, *nowhere).encode(),
                Payload(PayloadKind.PART, Flavour.MYSQL, 0, *nowhere, table, [unit], part=7).encode(),
                Payload(PayloadKind.MARK, Flavour.MYSQL, 1 << 40, *nowhere).encode(),
            ],
            2,
        ):
            one.spoil(wrong)
            one.execute(f"INSERT INTO s.t VALUES ({number}, {number}, 'a')")
            two.execute(f"INSERT INTO s.t VALUES ({number + 10}, {number + 10}, 'b')")
            settle(sites)
            same_everywhere(sites, "s.t")
        assert two.execute("SELECT COUNT(*) FROM s.t") == [(9,)]
        assert [len(site.void) for site in sites] == [4, 4]
