"""The daemon on a real server: start and stop, signals, and what it does when something is wrong or dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
import yaml

from mysqlraft import certificates
from mysqlraft.admin.status import own
from mysqlraft.binlog import key_memo
from mysqlraft.daemon import EXIT_ADDRESS, EXIT_CLOCK, EXIT_CONFIGURATION
from mysqlraft.sandbox.cluster import Cluster, ClusterSite, Status
from mysqlraft.sandbox.servers import Installation
from tests.harness.daemons import ended, free_port, running, settings

pytestmark = pytest.mark.timeout(120)


def until(condition: Callable[[], Any], what: str, seconds: float = 40.0) -> Any:
    """Waits until ``condition()`` is true, and returns what it returned."""
    deadline = time.monotonic() + seconds
    while True:
        if found := condition():
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def status(site: ClusterSite) -> Status:
    """What /status of the site's daemon shows. While the daemon runs, an answer is waited for."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return site.daemon.status()
        except (OSError, ValueError, HTTPException):
            if not site.daemon.running or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def row(site: ClusterSite) -> dict[str, Any]:
    """The site's row in its own daemon's status; empty if that does not run."""
    try:
        return own(status(site))
    except (OSError, ValueError, HTTPException):
        return {}


def state(site: ClusterSite, wanted: str, reason: str = "") -> dict[str, Any]:
    """Waits for a state of the site's replication, with these words in its reason."""
    last: dict[str, Any] = {}

    def reached() -> dict[str, Any] | None:
        nonlocal last
        last = row(site)
        return last if last.get("state") == wanted and reason in last["reason"] else None

    try:
        found: dict[str, Any] = until(reached, f"state {wanted}")
    except AssertionError:
        pytest.fail(f"state {wanted} {reason} is not reached, but {last}{site.daemon.log_tail(30)}")
    print(f"{site.name}: {found['state']} {found['reason']}")
    return found


def came_back(site: ClusterSite) -> int:
    """How many own units its replica process has captured, once all of them are back from the log; else 0."""
    found = row(site)
    captured: int = (found.get("units") or {}).get("captured", 0)  # None between two replica processes
    return captured if found.get("pending") == 0 else 0


def ask(site: ClusterSite, page: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(site.daemon.admin + page, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def sql(site: ClusterSite, *statements: str) -> Any:
    with site.server.connect() as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall()


def configure(site: ClusterSite, section: str | None, **values: Any) -> None:
    """Changes keys in the site's file."""
    written = yaml.safe_load(site.daemon.config.read_text())
    (written if section is None else written.setdefault(section, {})).update(values)
    site.daemon.config.write_text(yaml.safe_dump(written))


def log(site: ClusterSite) -> str:
    return site.daemon.log.read_text()


@pytest.fixture
def make(installation: Installation, tmp_path: Path) -> Iterator[Callable[[int], Cluster]]:
    made: list[Cluster] = []

    def one(sites: int) -> Cluster:
        made.append(Cluster.create(installation, tmp_path / "cluster", sites=sites, links=False))
        made[-1].start_servers()
        return made[-1]

    yield one
    for cluster in made:
        cluster.close()


@pytest.fixture
def pair(make: Callable[[int], Cluster]) -> tuple[ClusterSite, ClusterSite]:
    """Two sites whose daemons replicate, without tables yet."""
    cluster = make(2)
    cluster.start_daemons()
    for one in cluster:
        state(one, "running")
    return cluster[1], cluster[2]


@pytest.fixture
def site(make: Callable[[int], Cluster]) -> ClusterSite:
    """A cluster of one site: the server runs, the daemon does not yet."""
    return make(1)[1]


def test_a_life(site: ClusterSite) -> None:
    """Start, pages, memory, reload, stop."""
    site.daemon.start()
    found = state(site, "running")
    assert found["role"] == "leader"
    sql(site, "CREATE DATABASE shop", "CREATE TABLE shop.t (a INT PRIMARY KEY)", "INSERT INTO shop.t VALUES (1), (2)")
    until(lambda: came_back(site) == 1, "the unit comes back")
    assert ask(site, "/healthz") == (200, "ok\n")
    assert until(lambda: ask(site, "/readyz") == (200, "ready\n"), "ready")
    assert "mysqlraft_units_captured_total 1\n" in ask(site, "/metrics")[1]
    assert row(site)["capture"]["file"].startswith("binlog.")

    pids = (site.daemon.pid, site.daemon.replica_pid)
    resident = 0
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        resident += int(status.split("VmRSS:")[1].split()[0]) << 10
    print(f"both processes idle: {resident >> 20} MiB")
    assert resident < 150_000_000

    begun = time.monotonic()
    assert site.daemon.stop() == 0
    took = time.monotonic() - begun
    print(f"SIGTERM to the end: {took:.2f} s")
    assert took < 8
    assert "daemon: stopped" in log(site)
    assert "Traceback" not in log(site)
    known = key_memo.read(site.daemon.data_dir / key_memo.FILE)
    assert known is not None
    assert list(known.tables) == [("shop", "t")]


def test_reload(site: ClusterSite) -> None:
    site.daemon.start()
    state(site, "running")
    pid, replica = site.daemon.pid, site.daemon.replica_pid
    assert pid is not None

    def reload() -> None:
        os.kill(pid, signal.SIGHUP)

    configure(site, "log", level="debug")
    reload()
    until(lambda: "reloaded changed=log.level" in log(site), "the log level taken")
    assert site.daemon.replica_pid == replica, "the replica process had no part in it"

    configure(site, "raft", tick_ms=60)
    configure(site, "log", level="warning")
    reload()
    until(lambda: "reload refused, nothing changed: raft.tick_ms takes a restart" in log(site), "a refusal")

    configure(site, "raft", tick_ms="often")
    reload()
    until(lambda: "reload refused, nothing changed: " in log(site) and "'often' is not allowed" in log(site), "refusal")

    configure(site, "raft", tick_ms=100)
    configure(site, "log", level="info")
    configure(site, "apply", batch_rows=77)
    reload()
    until(lambda: site.daemon.replica_pid not in (replica, None), "another replica process")
    state(site, "running")
    assert site.daemon.pid == pid


def test_killed_processes(pair: tuple[ClusterSite, ClusterSite]) -> None:
    """Either process killed, again and again, under writes: nothing lost, nothing twice."""
    here, there = pair
    sql(here, "CREATE DATABASE shop", "CREATE TABLE shop.t (a INT PRIMARY KEY, site INT)")
    sql(here, "CREATE TABLE shop.log (n INT AUTO_INCREMENT PRIMARY KEY, a INT, site INT)")
    until(lambda: sql(there, "SHOW TABLES FROM mysqlraft") and has_table(there, "shop", "log"), "the tables")
    written = 0
    for number in range(8):
        for one in pair:
            for _ in range(12):
                written += 1
                with one.server.connect(autocommit=False) as connection, connection.cursor() as cursor:
                    cursor.execute("INSERT INTO shop.t VALUES (%s, %s)", (written, one.number))
                    cursor.execute("INSERT INTO shop.log (a, site) VALUES (%s, %s)", (written, one.number))
                    connection.commit()
        victim = pair[number // 2 % 2]
        if number % 2:
            until(victim.daemon.kill_replica, "a replica process to kill")
        else:
            victim.daemon.kill()
            victim.daemon.start()
    count = "SELECT COUNT(*), COUNT(DISTINCT a), (SELECT COUNT(*) FROM shop.t) FROM shop.log"
    wanted = [((written,) * 3,)] * len(pair)
    until(lambda: [sql(one, count) for one in pair] == wanted, f"{written} rows at both", 60)
    checks = [sql(one, "CHECKSUM TABLE shop.t, shop.log") for one in pair]
    assert checks[0] == checks[1]
    for one in pair:
        state(one, "running")
    print(f"{written} transactions, 8 kills")


def has_table(site: ClusterSite, schema: str, table: str) -> bool:
    found = sql(
        site,
        f"SELECT 1 FROM information_schema.tables WHERE table_schema = '{schema}' AND table_name = '{table}'",
    )
    return bool(found)


def test_the_server_restarts(site: ClusterSite) -> None:
    site.daemon.start()
    state(site, "running")
    replica = site.daemon.replica_pid
    sql(site, "CREATE DATABASE shop", "CREATE TABLE shop.t (a INT PRIMARY KEY)")
    site.server.kill()
    found = state(site, "retrying")
    assert found["reason"]
    assert ask(site, "/healthz")[0] == 200
    assert ask(site, "/readyz")[0] == 503
    site.server.start()
    state(site, "running")
    sql(site, "INSERT INTO shop.t VALUES (1)")
    until(lambda: came_back(site) == 1, "the unit comes back")
    assert site.daemon.replica_pid == replica, "it mended itself"


def test_the_server_restarts_in_the_middle_of_a_large_unit(site: ClusterSite) -> None:
    """The unit leaves again as a whole, in a session of its own, by itself."""
    configure(site, "capture", part_bytes="4KiB", window_bytes="64KiB")
    site.daemon.start()
    state(site, "running")
    replica = site.daemon.replica_pid
    sql(site, "CREATE DATABASE shop", "CREATE TABLE shop.t (a INT PRIMARY KEY, b TEXT)")
    rows = ", ".join(f"({n}, REPEAT('x', 2000))" for n in range(4000))
    sql(site, f"INSERT INTO shop.t VALUES {rows}")

    def sent() -> int:
        details = status(site)["replica"].get("capture_details") or {}
        return int(details.get("payloads", 0))

    until(lambda: sent() > 30, "parts have left")
    site.server.kill()
    until(lambda: "session ends in the middle of a unit" in log(site), "the session's end")
    site.server.start()
    sql(site, "INSERT INTO shop.t VALUES (5000, '')")
    until(lambda: came_back(site) == 2, "both units", 90)
    state(site, "running")
    assert site.daemon.replica_pid == replica, "it mended itself"


def test_a_server_that_hangs(site: ClusterSite) -> None:
    """Its connections stay open, and nothing comes over them."""
    site.daemon.start()
    state(site, "running")
    assert site.server.pid is not None
    os.kill(site.server.pid, signal.SIGSTOP)
    try:
        state(site, "retrying", "does not answer")
        code, text = ask(site, "/readyz")
        assert code == 503
        assert "does not answer" in text
    finally:
        os.kill(site.server.pid, signal.SIGCONT)
    state(site, "running")


def test_a_replica_process_that_hangs(site: ClusterSite) -> None:
    """What it reported last is not true any more; it is ended, and another one goes on."""
    site.daemon.start()
    state(site, "running")
    hung = site.daemon.replica_pid
    assert hung is not None
    os.kill(hung, signal.SIGSTOP)
    found = state(site, "retrying", "has not reported for")
    assert found["age"] > 5
    assert found["lag"]["seconds"] is None
    assert ask(site, "/readyz")[0] == 503
    until(lambda: site.daemon.replica_pid not in (None, hung), "another replica process")
    state(site, "running")
    assert row(site)["age"] < 5
    assert f"replica process is silent, killing it pid={hung}" in log(site)
    sql(site, "CREATE DATABASE shop", "CREATE TABLE shop.t (a INT PRIMARY KEY)", "INSERT INTO shop.t VALUES (1)")
    until(lambda: came_back(site) == 1, "the unit comes back")


def test_no_server_at_the_start(site: ClusterSite) -> None:
    site.server.stop()
    site.daemon.start()
    state(site, "retrying", "the server at")
    site.server.start()
    state(site, "running")


def test_a_history_that_takes_long_to_count(site: ClusterSite) -> None:
    """The site does all it is there for before the count is in."""
    site.daemon.start()
    state(site, "running")
    assert site.daemon.stop() == 0
    with closing(site.server.connect()) as other:
        other.cursor().execute("LOCK TABLES mysqlraft.conflicts WRITE")
        site.daemon.start()
        state(site, "running")
        sql(site, "CREATE DATABASE shop", "CREATE TABLE shop.t (a INT PRIMARY KEY)", "INSERT INTO shop.t VALUES (1)")
        until(lambda: came_back(site) == 1, "the unit comes back")
        assert row(site)["conflicts"] is None
    until(lambda: row(site)["conflicts"] == 0, "the count")


def test_an_unfit_server_is_named_and_waited_for(site: ClusterSite, monkeypatch: pytest.MonkeyPatch) -> None:
    sql(site, "CREATE DATABASE shop", "CREATE TABLE shop.t (a INT)")
    site.daemon.start()
    reason = state(site, "stopped")["reason"]
    assert reason.startswith("the server is not fit to be replicated: shop.t has no primary key; `mysqlraft check`")
    assert not sql(site, "SHOW DATABASES LIKE 'mysqlraft'"), "on a first start nothing begins before"
    sql(site, "ALTER TABLE shop.t ADD PRIMARY KEY (a)")
    state(site, "running")


def said(site: ClusterSite, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a verb that Ann gives at a site answers."""
    command = [sys.executable, "-m", "mysqlraft", *arguments, "--config", str(site.daemon.config)]
    environment = {**os.environ, "SUDO_USER": "ann"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_statement_that_cannot_be_run_is_skipped(pair: tuple[ClusterSite, ClusterSite]) -> None:
    """Only the one at which the site stopped, once what it does was done by hand; for good."""
    here, there = pair

    def skip(site: ClusterSite, index: int) -> subprocess.CompletedProcess[str]:
        return said(site, "skip", "--index", str(index))

    refused = skip(there, 3)
    assert refused.returncode == 1
    assert "has not stopped at a statement (it is running)" in refused.stderr
    sql(there, "SET SESSION sql_log_bin = 0", "CREATE DATABASE shop", "CREATE TABLE shop.t (a INT PRIMARY KEY)")
    sql(here, "CREATE DATABASE IF NOT EXISTS shop", "CREATE TABLE shop.t (a INT PRIMARY KEY, b INT)")
    sql(here, "INSERT INTO shop.t VALUES (1, 1)")
    reason = state(there, "stopped")["reason"]
    index = status(there)["replica"]["stopped_at"]
    assert reason.startswith(f"log index {index}, from site 1: CREATE TABLE shop.t")
    assert f"that this site has stopped, not at {index + 1}" in skip(there, index + 1).stderr

    sql(there, "SET SESSION sql_log_bin = 0", "ALTER TABLE shop.t ADD b INT")
    done = skip(there, index)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        f"goes on from log index {index}, where it had stopped: log index {index}, from site 1"
    )
    until(lambda: sql(there, "SELECT * FROM shop.t") == ((1, 1),), "the row behind it")
    state(there, "running")
    assert f"statement skipped index={index} by='ann@" in log(there)
    assert skip(there, index).returncode == 1, "it has not stopped any more"
    there.daemon.stop()
    there.daemon.start()
    state(there, "running")
    assert status(there)["replica"]["skipped"] == [index]


def test_an_own_transaction_that_cannot_be_carried_is_skipped(pair: tuple[ClusterSite, ClusterSite]) -> None:
    """It stops capture and nothing else, before and after restarts; then one verb goes on without it, for good."""
    here, there = pair
    sql(here, "CREATE DATABASE shop", "CREATE TABLE shop.t (a INT PRIMARY KEY, b INT)")
    until(lambda: has_table(there, "shop", "t"), "the table")
    assert "capture has not stopped at a transaction here" in said(here, "skip", "--captured", "0-1-1").stderr
    replica = here.daemon.replica_pid
    sql(here, "INSERT INTO shop.t VALUES (1, 1)")
    sql(here, "SET SESSION binlog_format = STATEMENT", "INSERT INTO shop.t VALUES (2, 2)")
    sql(here, "INSERT INTO shop.t VALUES (3, 3)")

    def applies(number: int) -> None:
        sql(there, f"INSERT INTO shop.t VALUES ({number}, 0)")
        until(lambda: (number,) in sql(here, "SELECT a FROM shop.t"), "apply goes on")

    reason = state(here, "capture stopped")["reason"]
    assert reason.startswith("capture: a statement that changes rows of shop was logged as a statement")
    applies(10)
    assert here.daemon.replica_pid == replica
    assert "capture stopped: capture: a statement" in ask(here, "/readyz")[1]
    assert state(there, "running")
    here.daemon.stop()
    here.daemon.start()
    assert state(here, "capture stopped")["reason"] == reason
    applies(11)

    named = reason.split("mysqlraft skip --captured ")[1].split("`")[0]
    wrong = said(here, "skip", "--captured", named + "0")
    assert wrong.returncode == 1
    assert f"it is at {named} that capture has stopped, not at {named}0" in wrong.stderr
    done = said(here, "skip", "--captured", named)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"goes on without {named}, which is in {here.daemon.data_dir}/skipped/binlog.")
    rows = Path(done.stdout.split("which is in ")[1].split("; skipped")[0])
    assert "INSERT INTO shop.t VALUES (2, 2)" in rows.read_text()
    state(here, "running")
    assert f"own transaction skipped at={named} by='ann@" in log(here)
    until(lambda: (3,) in sql(there, "SELECT a FROM shop.t"), "what came behind it")
    assert sql(there, "SELECT a FROM shop.t ORDER BY a") == ((1,), (3,), (10,), (11,))
    rows.unlink()  # once it is behind, nothing depends on it
    here.daemon.stop()
    here.daemon.start()
    state(here, "running")
    assert not rows.exists()
    kept = json.loads((here.daemon.data_dir / "skipped.json").read_text())
    assert [(skip["gtid"], skip["rows"]) for skip in kept] == [(named, str(rows))]


UNFIT = [
    # what is made while the daemon runs, what is told of it, what mends it
    (["TABLE shop.t (a INT)"], "shop.t has no primary key", "ADD PRIMARY KEY (a)"),
    (["TABLE shop.t (a INT PRIMARY KEY) ENGINE = MyISAM"], "shop.t is a MyISAM table", "ENGINE = InnoDB"),
    (
        [
            "TABLE shop.p (a INT PRIMARY KEY)",
            "TABLE shop.t (a INT PRIMARY KEY, CONSTRAINT c FOREIGN KEY (a) REFERENCES shop.p (a) ON DELETE CASCADE)",
        ],
        "shop.t has the foreign key c with ON DELETE CASCADE",
        "DROP FOREIGN KEY c",
    ),
]


def test_a_table_that_comes_later_and_does_not_do(site: ClusterSite) -> None:
    """What preflight would refuse is refused when somebody makes it: nothing of it is in the log until it is mended."""
    site.daemon.start()
    state(site, "running")
    replica = site.daemon.replica_pid
    for made, told, mended in UNFIT:
        logged = "CASCADE" in told and site.server.engine == "mysql"  # as MySQL 9.6 and later do
        sql(site, "CREATE DATABASE shop", *(f"CREATE {one}" for one in made))
        if not logged:
            reason = state(site, "capture stopped")["reason"]
            assert reason.startswith(f"the server is not fit to be replicated: {told}")
            sql(site, f"ALTER TABLE shop.t {mended}")
        state(site, "running")
        sql(site, "CREATE TABLE shop.u (a INT PRIMARY KEY)", "INSERT INTO shop.u VALUES (1)")
        until(lambda: came_back(site), "the unit comes back")
        sql(site, "DROP DATABASE shop")
    assert site.daemon.replica_pid == replica


def test_another_sites_table_that_does_not_do_here(pair: tuple[ClusterSite, ClusterSite]) -> None:
    here, there = pair
    sql(there, "SET GLOBAL default_storage_engine = 'MyISAM'")
    sql(here, "CREATE DATABASE shop", "CREATE TABLE shop.t (a INT PRIMARY KEY)")
    until(lambda: has_table(there, "shop", "t"), "the table")
    until(lambda: row(there)["lag"]["entries"] == 0, "apply has compared it")
    # A session of apply from before has the old setting, so say what it would have made.
    sql(there, "SET SESSION sql_log_bin = 0", "ALTER TABLE shop.t ENGINE = MyISAM")
    sql(there, "CREATE DATABASE local", "CREATE TABLE local.t (a INT PRIMARY KEY) ENGINE = InnoDB")
    assert "shop.t is a MyISAM table" in state(there, "capture stopped")["reason"]
    sql(here, "INSERT INTO shop.t VALUES (1)")
    until(lambda: "rows cannot be written together with the place in the log" in row(there)["reason"], "apply stops")
    sql(there, "SET SESSION sql_log_bin = 0", "ALTER TABLE shop.t ENGINE = InnoDB")
    assert there.daemon.pid is not None
    os.kill(there.daemon.pid, signal.SIGHUP)
    until(lambda: has_table(here, "local", "t"), "what was held comes")
    until(lambda: sql(there, "SELECT * FROM shop.t") == ((1,),), "and the row goes")


def test_a_table_that_does_not_do_at_a_start(pair: tuple[ClusterSite, ClusterSite]) -> None:
    """Where something was applied before, it holds capture only, and what mends it may come from another site. What is
    wrong with the server itself holds all."""
    here, there = pair
    sql(
        here,
        "CREATE DATABASE shop",
        "CREATE TABLE shop.t (a INT PRIMARY KEY)",
        "CREATE TABLE shop.u (a INT PRIMARY KEY)",
    )
    until(lambda: has_table(there, "shop", "u"), "the tables")
    there.daemon.stop()
    sql(there, "INSERT INTO shop.u VALUES (2)")
    sql(there, "SET SESSION sql_log_bin = 0", "ALTER TABLE shop.t ENGINE = MyISAM")
    sql(there, "SET GLOBAL binlog_row_image = 'MINIMAL'")
    sql(here, "INSERT INTO shop.u VALUES (1)")

    def rows(site: ClusterSite) -> list[int]:
        return [a for (a,) in sql(site, "SELECT a FROM shop.u ORDER BY a")]

    there.daemon.start()
    found = state(there, "stopped")
    assert "binlog_row_image is MINIMAL, not FULL and 1 more;" in found["reason"]
    assert found["applied"] is None
    assert rows(there) == [2]

    sql(there, "SET GLOBAL binlog_row_image = 'FULL'")
    until(lambda: rows(there) == [1, 2], "apply goes on")
    reason = "the server is not fit to be replicated: shop.t is a MyISAM table; `mysqlraft check` prints the SQL"
    until(lambda: row(there).get("reason", "").startswith(reason), "what capture waits for")
    replica = there.daemon.replica_pid
    assert row(there)["state"] == "capture stopped"
    assert ask(there, "/readyz")[0] == 503
    assert reason in ask(there, "/readyz")[1]
    assert f"capture waits reason='{reason}" in log(there)
    check = [sys.executable, "-m", "mysqlraft", "check", "--config", str(there.daemon.config)]
    checked = subprocess.run(check, capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert "error: shop.t is a MyISAM table" in checked.stdout
    assert row(there)["units"]["captured"] == 0

    sql(here, "ALTER TABLE shop.t ENGINE = InnoDB")
    state(there, "running")
    until(lambda: rows(here) == [1, 2], "what was held comes")
    assert there.daemon.replica_pid == replica


def test_rows_without_a_primary_key_before_a_start(pair: tuple[ClusterSite, ClusterSite]) -> None:
    """The table holds capture before it reads them; once it has a key they are left out, and that is said for good."""
    here, there = pair
    sql(here, "CREATE DATABASE shop", "CREATE TABLE shop.u (a INT PRIMARY KEY)")
    until(lambda: has_table(there, "shop", "u"), "the table")
    there.daemon.stop()
    sql(there, "CREATE TABLE shop.n (a INT)", "INSERT INTO shop.n VALUES (1), (2)", "INSERT INTO shop.u VALUES (7)")
    there.daemon.start()
    assert "shop.n has no primary key" in state(there, "capture stopped")["reason"]
    sql(here, "INSERT INTO shop.u VALUES (1)")
    until(lambda: (1,) in sql(there, "SELECT a FROM shop.u"), "apply goes on")
    sql(there, "ALTER TABLE shop.n ADD PRIMARY KEY (a)")
    state(there, "running")
    until(lambda: (7,) in sql(here, "SELECT a FROM shop.u"), "what came behind them")
    note = f"{there.name}: 2 rows of shop.n, written while it had no primary key, are at that site only"
    for one in pair:
        until(lambda one=one: note in status(one)["notes"], "both sites say so")  # type: ignore[misc]
    sql(there, "CREATE TABLE shop.m (a INT PRIMARY KEY)", "INSERT INTO shop.m SELECT a FROM shop.n")
    until(lambda: has_table(here, "shop", "m") and len(sql(here, "SELECT a FROM shop.m")) == 2, "copied, they come")
    there.daemon.stop()
    there.daemon.start()
    state(there, "running")
    assert note in status(there)["notes"]
    sql(there, "DELETE FROM mysqlraft.left_out")
    assert there.daemon.pid is not None
    there.daemon.kill_replica()
    until(lambda: note not in status(there)["notes"] and row(there)["state"] == "running", "no longer")


def test_a_lost_binlog_stops_the_site_and_says_so(site: ClusterSite) -> None:
    site.daemon.start()
    state(site, "running")
    sql(site, "CREATE DATABASE shop", "CREATE TABLE shop.t (a INT PRIMARY KEY)")
    until(lambda: row(site)["applied"] and row(site)["lag"]["entries"] == 0, "all applied")
    site.daemon.stop()
    sql(
        site, "INSERT INTO shop.t VALUES (1)", "FLUSH BINARY LOGS", "INSERT INTO shop.t VALUES (2)", "FLUSH BINARY LOGS"
    )
    last = sql(site, "SHOW BINARY LOGS")[-1][0]
    sql(site, f"PURGE BINARY LOGS TO '{last}'")
    site.daemon.start()
    reason = state(site, "capture stopped")["reason"]
    assert "the server no longer has its binlog from" in reason
    assert ask(site, "/healthz")[0] == 200, "consensus goes on"
    until(lambda: "replication state=capture stopped" in log(site), "the reason in the log")


def test_two_sites_one_without_its_daemon(make: Callable[[int], Cluster]) -> None:
    """What the others see of a site that is gone."""
    cluster = make(2)
    cluster.start_daemons()
    state(cluster[1], "running")
    until(lambda: _other(cluster[1])["state"] == "running", "the other site runs")
    cluster[2].daemon.kill()
    until(lambda: _other(cluster[1])["state"] == "silent", "the other site is silent")
    other = _other(cluster[1])
    assert other["reason"].startswith("not heard of for")
    assert other["applied"] is not None, "what it said last stays"


def _other(site: ClusterSite) -> dict[str, Any]:
    other: dict[str, Any] = status(site)["sites"][1]
    return other


# How it ends when it cannot begin. These need no server.


def test_other_members(tmp_path: Path) -> None:
    """The file makes members once, with an empty directory; from then on the log has them, and a difference is told."""
    path = settings(tmp_path)
    with running(path) as daemon:
        assert daemon.stderr is not None
        assert any("bootstrapped members=1=tokyo" in line for line in daemon.stderr)
        daemon.terminate()
        assert daemon.wait(20) == 0
    members = yaml.safe_load(path.read_text())["cluster"]
    members["sites"].append({"id": 2, "name": "oslo", "address": f"127.0.0.1:{free_port()}"})
    with running(settings(tmp_path, cluster=members)) as daemon:
        assert daemon.stderr is not None
        line = next(line for line in daemon.stderr if "cluster.sites" in line)
        assert "cluster.sites in the file is not what the log holds, which counts: oslo is no member" in line
        assert "bootstrapped" not in line
        daemon.terminate()
        assert daemon.wait(20) == 0
    status, errors = ended(settings(tmp_path, cluster={**members, "id": "other"}))
    assert status == EXIT_CONFIGURATION
    assert "data_dir" in errors


@pytest.mark.parametrize("key", ["listen", "admin"])
def test_an_address_in_use(key: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, errors = ended(settings(tmp_path, **{key: address if key == "listen" else {"listen": address}}))
    assert status == EXIT_ADDRESS
    assert f"listen {address}: Address already in use" in errors


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    sites = [{"id": 1, "name": "tokyo", "address": "192.0.2.1:7450"}]
    status, errors = ended(settings(tmp_path, cluster={"id": "test", "sites": sites}))
    assert status == EXIT_ADDRESS
    assert "listen 192.0.2.1:7450: Cannot assign requested address" in errors
    assert "say where to listen" in errors


def test_a_data_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in ("file", "file/below"):
        status, errors = ended(settings(tmp_path, data_dir=str(tmp_path / path)))
        assert status == EXIT_CONFIGURATION
        assert f"data_dir: {tmp_path / path} cannot be a directory" in errors


def test_a_second_daemon_in_the_same_directory(tmp_path: Path) -> None:
    path = settings(tmp_path)
    with running(path) as first:
        assert first.stderr is not None
        assert any("bootstrapped" in line for line in first.stderr)
        status, errors = ended(settings(tmp_path))
        assert status == EXIT_CONFIGURATION
        assert "data_dir" in errors
        first.terminate()
        assert first.wait(20) == 0


def test_a_wrong_configuration(tmp_path: Path) -> None:
    assert ended(settings(tmp_path, nonsense=1))[0] == EXIT_CONFIGURATION


def secured(directory: Path, **changes: Any) -> Path:
    made = directory / "certificates"
    certificates.make(made, "test", ["tokyo", "oslo"])
    return settings(directory, insecure=False, tls=certificates.settings(made, "tokyo") | changes)


def test_certificates_that_will_not_do(tmp_path: Path) -> None:
    status, errors = ended(secured(tmp_path, certificate=str(tmp_path / "certificates" / "oslo.pem")))
    assert status == EXIT_CONFIGURATION
    assert "tls.key: " in errors
    status, errors = ended(secured(tmp_path, ca=str(tmp_path / "absent.pem")))
    assert status == EXIT_CONFIGURATION
    assert "tls.ca: " in errors
    status, errors = ended(settings(tmp_path, insecure=False))
    assert status == EXIT_CONFIGURATION
    assert "tls: is missing" in errors


@pytest.mark.parametrize(
    ("early", "days", "reason"), [(-24, 2, "certificate is not yet valid"), (1, 0, "certificate has expired")]
)
def test_a_start_while_the_clock_is_wrong_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: int, days: int, reason: str
) -> None:
    """A machine may start before its clock is set: nobody may have to come then."""
    monkeypatch.setattr(certificates, "_SKEW", timedelta(hours=early))
    made = tmp_path / "certificates"
    certificates.make(made, "test", ["tokyo"], days=days)
    status, errors = ended(settings(tmp_path, insecure=False, tls=certificates.settings(made, "tokyo")))
    assert status == EXIT_CLOCK
    assert reason in errors


def test_certificates_are_read_again_at_sighup(tmp_path: Path) -> None:
    path = secured(tmp_path)
    certificate, key = (Path(yaml.safe_load(path.read_text())["tls"][file]) for file in ("certificate", "key"))
    with running(path) as daemon:
        assert daemon.stderr is not None
        lines = daemon.stderr

        def told(text: str) -> None:
            daemon.send_signal(signal.SIGHUP)
            assert any(text in line for line in lines)

        assert any("replication state=" in line for line in lines)
        told("reloaded changed=nothing")
        before = key.read_bytes()
        key.write_text("not a key")
        told(f"reload refused, nothing changed: tls.certificate: {certificate} and {key} are not")
        key.write_bytes(before)
        certificates.make(certificate.parent, "test", ["tokyo"], renew=True)
        told("reloaded changed=nothing")
        daemon.terminate()
        assert daemon.wait(20) == 0


def test_the_service_manager_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        told: list[str] = []

        def wait_for(line: str) -> None:
            while line not in told:
                told.extend(manager.recv(65536).decode().splitlines())

        path = settings(tmp_path)
        with running(path, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="900000") as daemon:
            wait_for("READY=1")
            wait_for("WATCHDOG=1")
            told.clear()
            wait_for("WATCHDOG=1")
            told.clear()
            daemon.send_signal(signal.SIGHUP)
            wait_for("RELOADING=1")
            wait_for("READY=1")
            assert any(line.startswith("MONOTONIC_USEC=") for line in told)
            daemon.terminate()
            wait_for("STOPPING=1")
            assert daemon.wait(20) == 0
        print(*(line for line in told if line.startswith("STATUS=")), sep="\n")


def test_status_as_json(site: ClusterSite) -> None:
    site.daemon.start()
    state(site, "running")
    command = [sys.executable, "-m", "mysqlraft", "status", "--config", str(site.daemon.config)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["sites"][0]["name"] == site.name
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(done.stdout)
    assert done.stdout.startswith("cluster sandbox: leader tokyo, term ")
