"""Members, witness, transfer, barrier and wait on real servers, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from mysqlraft.sandbox.cluster import Cluster, ClusterSite
from tests.daemon.test_daemon import ask, came_back, has_table, make, row, sql, state, status, until

__all__ = ["make"]  # a fixture

pytestmark = pytest.mark.timeout(180)


def command(site: ClusterSite, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A verb, asked of this site's daemon."""
    done = subprocess.run(
        [sys.executable, "-m", "mysqlraft", *arguments, "--config", str(site.daemon.config)],
        capture_output=True,
        text=True,
        check=False,
    )
    print(f"{site.name}$ mysqlraft {' '.join(arguments)}\n{done.stdout}{done.stderr}".rstrip())
    assert "Traceback" not in done.stderr
    return done


def tell(site: ClusterSite, *arguments: str) -> str:
    """A verb that has to succeed; what it printed."""
    done = command(site, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def mark(cluster: Cluster, name: str, **keys: Any) -> None:
    """Changes the entry of a site in every site's file."""
    for one in cluster:
        written = yaml.safe_load(one.daemon.config.read_text())
        next(entry for entry in written["cluster"]["sites"] if entry["name"] == name).update(keys)
        if keys.get("witness") and one.name == name:
            del written["mysql"]
        one.daemon.config.write_text(yaml.safe_dump(written))


def settled(*sites: ClusterSite) -> None:
    """All that was written at these sites is in the log, and applied at all of them."""

    def done() -> bool:
        rows = [row(one) for one in sites]
        return all(
            one and one["pending"] == 0 and one["lag"]["entries"] == 0 and one["capture"] is not None for one in rows
        )

    until(done, "nothing pending")


def test_a_site_joins_and_is_removed(make: Callable[[int], Cluster]) -> None:
    cluster = make(3)
    first, second, third = cluster
    mark(cluster, third.name, join=True)
    for one in (first, second):
        one.daemon.start()
    for one in (first, second):
        state(one, "running")
    sql(first, "CREATE DATABASE shop", "CREATE TABLE shop.t (a INT PRIMARY KEY)", "INSERT INTO shop.t VALUES (1)")

    third.daemon.start()
    assert "`mysqlraft members add`" in state(third, "joining")["reason"]
    assert third.daemon.replica_pid is None
    listed = command(third, "members", "list")
    assert listed.returncode == 1
    assert listed.stdout.startswith(f"{third.name} is not a member yet")
    refused = command(third, "transfer")
    assert refused.returncode == 1
    assert "not a member yet" in refused.stderr

    address = f"127.0.0.1:{third.listen.port}"
    tell(second, "members", "add", "3", third.name, address)
    state(third, "running")
    until(lambda: has_table(third, "shop", "t"), "the table")
    sql(third, "INSERT INTO shop.t VALUES (3)")
    until(lambda: len(sql(first, "SELECT a FROM shop.t")) == 2, "what the new site wrote")
    until(lambda: command(second, "members", "promote", third.name).returncode == 0, "promoted")
    table = [line.split() for line in tell(third, "members", "list").splitlines()]
    assert table[2] == ["id", "name", "address", "kind", "priority", "role", "state"]
    assert table[5] == ["3", third.name, address, "voter", "0", "follower", "running"]
    members = json.loads(tell(third, "members", "list", "--json"))
    assert [(one["name"], one["voter"]) for one in members["members"]] == [(one.name, True) for one in cluster]
    stale = command(first, "members", "demote", third.name, "--index", str(members["configuration_index"] - 1))
    assert stale.returncode == 1
    assert f"it is the one at index {members['configuration_index']}, not" in stale.stderr

    assert tell(second, "transfer", third.name).startswith(f"{third.name} leads now")
    until(lambda: row(third)["role"] == "leader", "it leads")
    settled(first, second, third)
    tell(third, "members", "remove", third.name)
    reason = state(third, "removed")["reason"]
    assert "not a member any more, by the configuration at index " in reason
    until(lambda: third.daemon.replica_pid is None, "its replica process has ended")
    assert ask(third, "/readyz")[0] == 503
    for verb in (["barrier"], ["wait", "--index", "1"]):
        refused = command(third, *verb)
        assert refused.returncode == 1
        assert "nothing is applied here: this site is not a member of the cluster" in refused.stderr
    sql(third, "INSERT INTO shop.t VALUES (4)")
    sql(first, "INSERT INTO shop.t VALUES (5)")
    until(lambda: [len(sql(one, "SELECT a FROM shop.t")) for one in (first, second)] == [3, 3], "the members go on")
    assert len(sql(third, "SELECT a FROM shop.t")) == 3
    assert [one["name"] for one in status(first)["sites"]] == [first.name, second.name]

    # It comes back with what it has, and with what it wrote meanwhile.
    tell(first, "members", "add", "3", third.name, address)
    state(third, "running")
    until(lambda: [len(sql(one, "SELECT a FROM shop.t")) for one in cluster] == [4, 4, 4], "all of it everywhere")


def test_a_witness(make: Callable[[int], Cluster]) -> None:
    cluster = make(3)
    first, second, witness = cluster
    mark(cluster, witness.name, witness=True)
    cluster.start_daemons()
    for one in cluster:
        state(one, "running")
    assert witness.daemon.replica_pid is None
    until(lambda: ask(witness, "/readyz") == (200, "ready\n"), "ready")
    assert 'mysqlraft_state{state="running"} 1' in ask(witness, "/metrics")[1]
    assert "witness: it has no server to check" in tell(witness, "check")
    until(lambda: command(first, "status").returncode == 0, "all of it in order")
    # What it heard from the others may be a second old.
    until(lambda: command(witness, "status").returncode == 0, "all of it in order for the witness, too")
    assert "(witness)" in tell(witness, "status")
    for verb in (["transfer", witness.name], ["barrier"], ["wait", "--index", "1"]):
        refused = command(witness, *verb)
        assert refused.returncode == 1
        assert "is a witness" in refused.stderr
    assert command(witness, "conflicts").returncode == 2

    sql(first, "CREATE DATABASE shop", "CREATE TABLE shop.t (a INT PRIMARY KEY)")
    until(lambda: has_table(second, "shop", "t"), "the table")
    leader = next(one for one in (first, second) if row(one)["role"] == "leader")
    other = second if leader is first else first
    captured = came_back(other)
    leader.daemon.kill()
    sql(other, "INSERT INTO shop.t VALUES (1)")
    until(lambda: came_back(other) > captured, "committed with the witness")
    until(lambda: row(other)["role"] == "leader", "it leads, and not the witness")


def test_a_barrier_shows_what_was_written_elsewhere(make: Callable[[int], Cluster]) -> None:
    cluster = make(2)
    here, there = cluster
    cluster.start_daemons()
    for one in cluster:
        state(one, "running")
    sql(here, "CREATE DATABASE shop", "CREATE TABLE shop.t (a INT PRIMARY KEY)")
    for number in range(5):
        sql(here, f"INSERT INTO shop.t VALUES ({number})")
        until(lambda: came_back(here) == number + 1, "it is in the log")  # noqa: B023
        waited = json.loads(tell(there, "barrier", "--json"))
        assert (number,) in sql(there, "SELECT a FROM shop.t"), "at once, without waiting any more"
        assert tell(there, "wait", "--index", str(waited["index"])).startswith("applied up to index ")
    late = command(there, "wait", "--index", "1000000", "--timeout", "0.3")
    assert late.returncode == 1
    assert "not applied within 0.3 s: this site has applied up to " in late.stderr

    # Nobody who could say what is committed.
    here.daemon.kill()
    until(lambda: status(there)["leader"] is None, "no leader")
    alone = command(there, "barrier", "--timeout", "0.5")
    assert alone.returncode == 3
    assert "no leader has answered within 0.5 s" in alone.stderr
