"""Two daemons with one site's identity, and daemons that come back: real ones, without servers."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from mysqlraft.daemon import EXIT_CONFIGURATION
from tests.harness.daemons import MYSQLRAFT, free_port, settings

SITES = ("tokyo", "oslo", "lima")


class Site:
    """One daemon of three, and what it logs."""

    def __init__(self, directory: Path, cluster: dict[str, Any], name: str, **changes: Any) -> None:
        directory.mkdir()
        self._log = directory / "daemon.log"
        self.path = settings(directory, cluster=cluster, site=name, **changes)
        self.admin = yaml.safe_load(self.path.read_text())["admin"]["listen"]
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen([*MYSQLRAFT, "run", "--config", str(self.path)], stderr=log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def raft(self) -> dict[str, Any]:
        """Of its status; empty while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://{self.admin}/status", timeout=5) as answer:
                found: dict[str, Any] = json.load(answer)["raft"]
                return found
        except OSError:
            return {}

    def agrees(self) -> bool:
        """Whether it knows a leader and has all connections."""
        raft = self.raft()
        return bool(raft.get("leader")) and all(peer["connected"] for peer in raft["peers"].values())


@contextmanager
def three(directory: Path) -> Iterator[list[Site]]:
    cluster = {
        "id": "test",
        "sites": [{"id": n, "name": name, "address": f"127.0.0.1:{free_port()}"} for n, name in enumerate(SITES, 1)],
    }
    with ExitStack() as stack:
        sites = [Site(directory / name, cluster, name) for name in SITES]
        for site in sites:
            site.start()
            stack.callback(site.kill)
        yield sites


def until(condition: Any, what: str, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@pytest.mark.timeout(300)
def test_the_second_one_stops_and_says_where_the_first_one_is(tmp_path: Path) -> None:
    with three(tmp_path) as sites:
        until(lambda: all(site.agrees() for site in sites), "three sites agree")
        term, before = sites[0].raft()["term"], [len(site.lines()) for site in sites]
        cluster = yaml.safe_load(sites[0].path.read_text())["cluster"]
        copy = Site(tmp_path / "copy", cluster, "tokyo", listen=f"127.0.0.1:{free_port()}")
        copy.start()
        try:
            assert copy.process.wait(30) == EXIT_CONFIGURATION
        finally:
            copy.kill()
        last = copy.lines()[-1]
        print(last)
        assert re.search(
            r"another daemon is tokyo \(site 1\) already, at 127\.0\.0\.1: (oslo|lima) has been connected with it "
            r"since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC\.",
            last,
        )
        assert len(copy.lines()) < 60, copy.lines()
        assert "Traceback" not in "".join(copy.lines())
        # The others have not noticed, but for a line each that names the cause.
        assert all(site.agrees() for site in sites)
        assert {site.raft()["term"] for site in sites} == {term}
        more = [
            [line for line in site.lines()[count:] if " supervisor: " not in line]  # there is no server
            for site, count in zip(sites, before, strict=True)
        ]
        assert more[0] == []
        for lines in more[1:]:
            assert len(lines) <= 1
            assert all(
                "connection refused: another daemon is site 1 here, connected from 127.0.0.1" in x for x in lines
            )
        assert more[1] or more[2]


@pytest.mark.timeout(300)
def test_a_daemon_that_was_killed_comes_back_at_once(tmp_path: Path) -> None:
    with three(tmp_path) as sites:
        until(lambda: all(site.agrees() for site in sites), "three sites agree")
        tokyo = sites[0]
        for _ in range(3):
            tokyo.kill()
            tokyo.start()
            until(lambda: bool(tokyo.raft()), "it answers")
            until(lambda: all(site.agrees() for site in sites), "three sites agree again")
        # Nobody has taken it for a second one, and made it wait.
        assert not any("another daemon" in line for site in sites for line in site.lines())
