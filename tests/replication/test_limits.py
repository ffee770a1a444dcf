"""Settings of the server that limit every session, or give its transactions another form."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import Any

import pytest

from mysqlraft.mysql import opening
from mysqlraft.replication.apply import ApplyState
from mysqlraft.replication.apply_session import open_session
from mysqlraft.sandbox.servers import Engine, Server
from tests.harness.pool import LendServers
from tests.replication.harness import run, settle, wait_for
from tests.replication.test_apply import cluster, same_everywhere
from tests.replication.test_stalls import thread_of

pytestmark = pytest.mark.timeout(120)

TABLE = "CREATE TABLE s.t (id INT PRIMARY KEY, a INT UNIQUE, b INT UNIQUE, v VARCHAR(20))"
LIMITS = {
    "sql_select_limit": "1",
    "max_join_size": "1",
    "sql_safe_updates": "1",
    "completion_type": "'RELEASE'",
    "transaction_read_only": "1",
}
_IN_MARIADB = {"transaction_read_only": "tx_read_only"}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_server_that_limits_every_session(servers: LendServers, engine: Engine, limit: str) -> None:
    """What the daemon asks of it and writes to it, conflicts included, is the same as without."""
    name = _IN_MARIADB.get(limit, limit) if engine == "mariadb" else limit
    with cluster(servers(2), TABLE) as sites:
        one, two = sites
        one.execute("INSERT INTO s.t VALUES (1, 1, 1, 'old'), (2, 2, 2, 'old'), (3, 3, 3, 'old'), (4, 4, 4, 'old')")
        settle(sites)
        one.link.hold()
        one.execute("UPDATE s.t SET v = 'one', a = a + 10, b = b + 20")
        wait_for(lambda: one.link.units_kept == 1, 30, one)
        two.stop()
        two.execute("UPDATE s.t SET v = 'two', b = 50 - a WHERE id < 4")
        default = two.execute(f"SELECT @@global.{name}")[0][0]
        two.execute(f"SET GLOBAL {name} = {LIMITS[limit]}")
        two.start()
        wait_for(lambda: two.capturing, 30, two)
        one.link.release()
        two.wait_applied()
        assert two.applier.status.retries == 0
        two.execute(f"SET GLOBAL {name} = {default!r}")
        settle(sites)
        same_everywhere(sites, "s.t")


def _account(server: Server) -> dict[str, Any]:
    return {"unix_socket": str(server.socket), "user": server.user, "password": server.password, "ssl_disabled": True}


def test_a_server_that_limits_the_time_of_a_query(server: Server) -> None:
    """The daemon's questions about thousands of tables take their time."""
    limit = "max_execution_time = 100" if server.engine == "mysql" else "max_statement_time = 0.1"
    with closing(server.connect()) as root:
        run(root.cursor(), f"SET GLOBAL {limit}")
    with closing(opening.connect(**_account(server))) as daemon:
        assert run(daemon.cursor(), "SELECT SLEEP(0.5)") == [(0,)]  # 1: it was interrupted


def test_a_server_whose_sessions_do_not_commit_by_themselves(server: Server) -> None:
    with closing(server.connect()) as root:
        run(root.cursor(), "SET GLOBAL autocommit = 0")
    with closing(opening.connect(**_account(server), autocommit=True)) as daemon:
        assert run(daemon.cursor(), "SELECT @@autocommit") == [(1,)]


@pytest.mark.parametrize("kind", ["", "write_", "readonly_"])
def test_a_server_that_ends_idle_transactions(server: Server, kind: str) -> None:
    """Between two statements of a unit apply may take its time."""
    if server.engine == "mysql":
        return  # It has no such limit.
    statement = "SELECT COUNT(*) FROM s.t" if kind == "readonly_" else "INSERT INTO s.t (v) VALUES (1)"
    with closing(server.connect()) as root, closing(root.cursor()) as cursor:
        run(cursor, "CREATE DATABASE s", "CREATE TABLE s.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)")
        run(cursor, f"SET GLOBAL idle_{kind}transaction_timeout = 1")
        session = open_session(partial(opening.connect, **_account(server)))
        with closing(server.connect(autocommit=False)) as other:
            session.run([b"START TRANSACTION"])
            session.query(statement) if kind == "readonly_" else session.run([statement.encode()])
            run(other.cursor(), statement)
            wait_for(lambda: thread_of(other) not in [row[0] for row in run(cursor, "SHOW PROCESSLIST")], 30, other)
        session.run([b"INSERT INTO s.t (v) VALUES (2)", b"COMMIT"])
        session.close()
        assert (2,) in run(cursor, "SELECT v FROM s.t")


@pytest.mark.parametrize("setting", ["slave_exec_mode = 'IDEMPOTENT'", "slave_run_triggers_for_rbr = 'YES'"])
def test_a_server_that_would_replay_rows_otherwise(servers: LendServers, engine: Engine, setting: str) -> None:
    """MariaDB's sessions cannot choose: apply waits for the server to be set right."""
    if engine == "mysql":
        return  # There it is a matter of the session, or there is no such thing.
    with cluster(servers(2), TABLE) as sites:
        one, two = sites
        two.execute(f"SET GLOBAL {setting}")
        wait_for(lambda: "SET GLOBAL slave_" in two.applier.status.reason, 30, two)
        assert two.applier.status.state is ApplyState.RETRYING
        one.execute("INSERT INTO s.t VALUES (1, 1, 1, 'one')")
        name = setting.partition(" ")[0]
        two.execute(f"SET GLOBAL {name} = '{'STRICT' if name == 'slave_exec_mode' else 'NO'}'")
        settle(sites)
        same_everywhere(sites, "s.t")
