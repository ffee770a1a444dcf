"""Every way in which the replica process can end, or cannot go on: a state, a reason, a next step, and no loop."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from mysqlraft.sandbox.cluster import ClusterSite
from mysqlraft.supervisor import END_AFTER
from tests.daemon.test_daemon import came_back, has_table, log, make, pair, row, site, sql, state, status, until

__all__ = ["make", "pair", "site"]

pytestmark = pytest.mark.timeout(120)


def reload(site: ClusterSite) -> None:
    assert site.daemon.pid is not None
    os.kill(site.daemon.pid, signal.SIGHUP)


def write(site: ClusterSite, number: int) -> None:
    """A transaction, and it is back from the log."""
    sql(site, f"INSERT INTO shop.t VALUES ({number})")
    until(lambda: came_back(site), "the unit comes back")


def stopped_or_started_since(site: ClusterSite, killed: int | None) -> bool:
    now = row(site)["state"]
    return now == "stopped" or (status(site)["replica"]["pid"] not in (None, killed) and now == "running")


@pytest.fixture
def running(site: ClusterSite) -> ClusterSite:
    site.daemon.start()
    state(site, "running")
    sql(site, "CREATE DATABASE shop", "CREATE TABLE shop.t (a INT PRIMARY KEY)")
    write(site, 1)
    return site


def test_killed_again_and_again(running: ClusterSite) -> None:
    """While it gets on it is started again each time; when it does not, the third time is the last."""
    site = running
    for number in range(2, 6):
        killed = until(lambda: site.daemon.replica_pid, "a replica process to kill")
        assert site.daemon.kill_replica()
        until(lambda: site.daemon.replica_pid not in (None, killed), "another replica process")  # noqa: B023
        write(site, number)
        state(site, "running")
    for _ in range(6):  # what the last of these has not said yet counts for the next
        killed = site.daemon.replica_pid
        assert site.daemon.kill_replica()
        until(partial(stopped_or_started_since, site, killed), "what comes of it")
        if row(site)["state"] == "stopped":
            break
    reason = state(site, "stopped")["reason"]
    assert reason.startswith("the replica process was killed by SIGKILL")
    assert "3 times in a row, and got nowhere in between" in reason
    assert "reload (SIGHUP)" in reason
    assert site.daemon.replica_pid is None
    reload(site)
    state(site, "running")
    write(site, 9)


def test_a_schema_that_is_dropped(running: ClusterSite) -> None:
    """Nothing is applied again from the log's beginning onto tables that hold it already."""
    site = running
    sql(site, "SET SESSION sql_log_bin = 0", "DROP DATABASE mysqlraft")
    sql(site, "INSERT INTO shop.t VALUES (2)")
    reason = state(site, "stopped")["reason"]
    assert reason.startswith("the schema mysqlraft was dropped or emptied")
    assert "load this site anew" in reason
    reload(site)
    until(lambda: log(site).count("the schema mysqlraft was dropped or emptied") > 2, "the same again")
    assert state(site, "stopped")["reason"].startswith("the schema mysqlraft was dropped or emptied")


def test_a_progress_row_that_is_damaged(running: ClusterSite) -> None:
    site = running
    for spoilt in ("state = 'x'", "state = 0x93050102", "state = REPEAT(0x95, 40)", "applied = 9999"):
        site.daemon.stop()
        good = sql(site, "SELECT HEX(state), applied FROM mysqlraft.progress")[0]
        sql(site, "SET SESSION sql_log_bin = 0", f"UPDATE mysqlraft.progress SET {spoilt}")
        site.daemon.start()
        reason = state(site, "stopped")["reason"]
        assert "mysqlraft.progress" in reason
        assert "load this site anew" in reason
        mended = "UPDATE mysqlraft.progress SET state = 0x{}, applied = {}".format(*good)
        sql(site, "SET SESSION sql_log_bin = 0", mended)
        reload(site)
        state(site, "running")


def test_rights_that_are_taken_away(pair: tuple[ClusterSite, ClusterSite]) -> None:
    """It is tried again until they are given back, and says which it lacks."""
    here, there = pair
    sql(here, "CREATE DATABASE shop", "CREATE TABLE shop.t (a INT PRIMARY KEY)")
    until(lambda: has_table(there, "shop", "t"), "the table")
    account = sql(there, "SELECT user, host FROM mysql.user WHERE user = 'mysqlraft'")[0]
    who = "`{}`@`{}`".format(*account)
    grants = [grant for (grant,) in sql(there, f"SHOW GRANTS FOR {who}")]
    sql(there, f"REVOKE ALL PRIVILEGES, GRANT OPTION FROM {who}")
    sql(here, "INSERT INTO shop.t VALUES (1)")
    state(there, "retrying", "denied")
    sql(there, *grants)
    until(lambda: sql(there, "SELECT a FROM shop.t") == ((1,),), "it goes on by itself")
    state(there, "running")


FAULT = """
import importlib, os, sys

if "mysqlraft.replication.replica" in sys.orig_argv and os.path.exists(os.environ["FAULT"]):
    with open(os.environ["FAULT"]) as file:
        module, _, path = file.read().partition(":")

    def fail(*_, **__):
        raise MemoryError("injected")

    *outer, last = path.split(".")
    where = importlib.import_module(module)
    for part in outer:
        where = getattr(where, part)
    setattr(where, last, fail)
"""

PLACES = {
    # where it is raised -> the state that it comes to in the end
    "mysqlraft.mysql.preflight:inspect": "stopped",
    "mysqlraft.replication.apply:Applier.__init__": "stopped",
    "mysqlraft.replication.state:ReplicationState.step": "stopped",
    "mysqlraft.ipc:Link._held": "stopped",
    "mysqlraft.replication.table_guard:TableGuard.look": "capture stopped",
    "mysqlraft.binlog.stream:TransactionStream.read": "capture stopped",
}


def test_what_nobody_has_thought_of(site: ClusterSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever thread of the replica process an exception is raised, it is tried again, and then it is said."""
    (tmp_path / "sitecustomize.py").write_text(FAULT)
    fault = tmp_path / "fault"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("FAULT", str(fault))
    site.daemon.start()
    state(site, "running")
    for place, end in PLACES.items():
        fault.write_text(place)
        until(site.daemon.kill_replica, "a replica process to kill")
        reason = state(site, end)["reason"]
        assert "MemoryError: injected" in reason
        assert " times in a row" in reason
        assert "eload (SIGHUP)" in reason
        fault.unlink()
        reload(site)
        state(site, "running")


@pytest.mark.parametrize("engine", ["mariadb"], indirect=True)
def test_a_program_that_is_loaded_slowly(site: ClusterSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where everything starts at once: it is not taken for one that hangs."""
    seconds = END_AFTER + 2
    slow = f"import sys, time\nif 'mysqlraft.replication.replica' in sys.orig_argv: time.sleep({seconds})\n"
    (tmp_path / "sitecustomize.py").write_text(slow)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    site.daemon.start()
    first = until(lambda: site.daemon.replica_pid, "a replica process")
    state(site, "starting", "the replica process is starting")
    state(site, "running")
    assert site.daemon.replica_pid == first
    assert "silent" not in log(site)
