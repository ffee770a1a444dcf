"""The demo as a user meets it: its output, its exit status, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest

from mysqlraft.sandbox.installation import Engine
from mysqlraft.sandbox.links import child_environment

KEYS = {"site", "mysql", "config", "admin", "pid", "log"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mysqlraft", "demo", *arguments]


@contextlib.contextmanager
def demo(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The demo in a process of its own, ended whatever happens."""
    process = subprocess.Popen(
        command(*arguments),
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell has what it runs in the background ignore Ctrl-C, and so these tests, and so the demo.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def processes(directory: Path) -> list[str]:
    """The command lines of all running processes that name the directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(directory) in line:
                    found.append(f"{entry.name}: {line}")
    return found


def wait_for_none(directory: Path) -> None:
    deadline = time.monotonic() + 20
    while left := processes(directory):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def wait_for_sites(process: subprocess.Popen[str], directory: Path) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 90
    while not (directory / "sites.json").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no sites.json after 90 s"
        time.sleep(0.05)
    sites: list[dict[str, Any]] = json.loads((directory / "sites.json").read_text())
    return sites


def test_three_sites_end_identical(engine: Engine, tmp_path: Path) -> None:
    with demo("--sites", "3", "--engine", engine, "--seconds", "4", "--dir", str(tmp_path / "d"), "--json") as process:
        output, progress = process.communicate(timeout=110)
    print(progress)
    assert process.returncode == 0, output
    result = json.loads(output)
    assert result["identical"] is True
    assert result["exactly_once"] is True
    assert result["transactions"] > 50
    assert result["cut_off"] is not None
    assert {table["table"] for table in result["tables"]} > {"shop.accounts", "shop.orders", "shop.writes"}
    assert processes(tmp_path) == []


def test_hold_leaves_an_idle_cluster_until_ctrl_c(engine: Engine, tmp_path: Path) -> None:
    directory = tmp_path / "held"
    with demo("--hold", "--sites", "3", "--engine", engine, "--dir", str(directory), "--rtt", "20") as process:
        sites = wait_for_sites(process, directory)
        assert len(sites) == 3
        for site in sites:
            assert set(site) == KEYS
            assert Path(site["config"]).exists()
            assert Path(site["log"]).exists()
            assert status(site)["site"] == site["site"]
        wait_for_round_trips(sites[0], 20)
        first, *others = [site["mysql"] for site in sites]
        with connect(first) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE held")
            cursor.execute("CREATE TABLE held.t (id INT PRIMARY KEY)")
            cursor.execute("INSERT INTO held.t VALUES (1)")
        for other in others:
            wait_for_row(other)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    wait_for_none(directory)


def status(site: dict[str, Any]) -> dict[str, Any]:
    with urllib.request.urlopen(f"{site['admin']}/status", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def wait_for_round_trips(site: dict[str, Any], milliseconds: float) -> None:
    """Until the site has measured what its links to the others take; the delay is the least of it."""
    deadline = time.monotonic() + 30
    while None in (measured := [row["rtt_ms"] for row in status(site)["sites"] if row["name"] != site["site"]]):
        assert time.monotonic() < deadline, measured
        time.sleep(0.05)
    print(f"{site['site']}: round trips of {measured} ms")
    assert min(measured) >= milliseconds


def connect(mysql: dict[str, Any]) -> pymysql.Connection[pymysql.cursors.Cursor]:
    return pymysql.connect(
        host=mysql["host"], port=mysql["port"], user=mysql["user"], password=mysql["password"], autocommit=True
    )


def wait_for_row(mysql: dict[str, Any]) -> None:
    deadline = time.monotonic() + 30
    while True:
        # The schema (1049, operational) and the table (1146) have to arrive first.
        with (
            contextlib.suppress(pymysql.err.ProgrammingError, pymysql.err.OperationalError),
            connect(mysql) as connection,
            connection.cursor() as cursor,
        ):
            if cursor.execute("SELECT id FROM held.t"):
                return
        assert time.monotonic() < deadline, "the row did not arrive"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_is_ended_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    directory = tmp_path / "ended"
    with demo("--hold", "--sites", "2", "--engine", "mariadb", "--dir", str(directory)) as process:
        wait_for_sites(process, directory)
        assert len(processes(directory)) >= 4, "two servers and two daemons are expected"
        process.send_signal(number)
        process.wait(60)
    wait_for_none(directory)


def test_a_directory_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with demo("--hold", "--sites", "1", "--dir", str(tmp_path)) as process:
        output, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "not empty" in error, output
    assert (tmp_path / "thesis.txt").read_text() == "precious"
