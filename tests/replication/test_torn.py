"""A server that is killed while it writes a large transaction into its binlog: that never committed."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pymysql
import pytest

from mysqlraft.replication.capture import position_now
from mysqlraft.replication.entry import PayloadKind
from tests.harness.pool import LendServers
from tests.replication.harness import SiteUnderTest, settle, wait_for
from tests.replication.test_apply import cluster, same_everywhere, units_logged, wait_capturing

pytestmark = pytest.mark.timeout(300)

TABLE = "CREATE TABLE s.t (id INT PRIMARY KEY, v LONGTEXT)"


def kill_while_it_writes(site: SiteUnderTest) -> tuple[str, int]:
    """Begins to commit a large transaction, and kills the server when a third of it is in the binlog. The file, and the
    bytes that were in it."""
    with closing(site.server.connect()) as connection:
        before = position_now(connection)
    file = next(Path(site.server.directory).rglob(before.file))

    def commit() -> None:
        rows = [f"INSERT INTO s.t VALUES ({1000 + n}, REPEAT('x', 1000000))" for n in range(60)]
        with pytest.raises(pymysql.err.OperationalError):
            site.execute("BEGIN", *rows, "COMMIT")

    thread = threading.Thread(target=commit)
    thread.start()
    while file.stat().st_size < before.offset + 20_000_000:
        thread.join(0.0005)
    site.server.kill()
    thread.join(60)
    return before.file, file.stat().st_size


@pytest.mark.parametrize(
    ("where", "part_bytes"),
    [("in an event", 1 << 20), ("in an event", 1 << 30), ("between events", 1 << 20)],
    ids=["in an event", "in an event, nothing has left", "between events"],
)
def test_a_transaction_that_the_server_never_finished(servers: LendServers, where: str, part_bytes: int) -> None:
    """Nothing of it is anywhere, and what comes in the next file goes on."""
    with cluster(servers(2), TABLE, capture={"part_bytes": part_bytes}) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 'before')")
        settle(sites)
        file, end = kill_while_it_writes(one)
        if where == "between events" and one.server.engine == "mariadb":
            cut_between_events(one, file, end)
        one.server.start()
        one.execute("INSERT INTO s.t VALUES (2, 'after')")
        settle(sites)
        same_everywhere(sites, "s.t")
        assert two.execute("SELECT id FROM s.t ORDER BY id") == [(1,), (2,)]
        left = len(one.log.of_kind(PayloadKind.PART))
        print(f"{one.server.engine}, {where}: {end} bytes in {file}, {left} parts left")
        # A new start, that knows nothing of it, goes on behind it.
        one.stop()
        one.start()
        wait_capturing(one)
        one.execute("INSERT INTO s.t VALUES (3, 'again')")
        settle(sites)
        assert two.execute("SELECT id FROM s.t ORDER BY id") == [(1,), (2,), (3,)]
        assert len(one.log.of_kind(PayloadKind.PART)) == left
        wait_for(lambda: units_logged(one) >= 3, 30, one)


def cut_between_events(site: SiteUnderTest, file: str, size: int) -> None:
    """Cuts the file of a server that does not run behind its last whole event."""
    path = next(Path(site.server.directory).rglob(file))
    data = path.read_bytes()
    at = 4
    while at + 19 <= size and (following := at + int.from_bytes(data[at + 9 : at + 13], "little")) <= size:
        at = following
    with path.open("r+b") as binlog:
        binlog.truncate(at)
