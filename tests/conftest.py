"""Fixtures with real servers.

- `engine`: "mysql" and "mariadb" in turn; every fixture below follows it.
- `server`: one running server, empty, with an empty binlog and default settings.
- `servers`: `servers(3)` lends three of them.
- `server_factory`: `server_factory(options={...}, gtid=False)` makes and starts one that no other test sees.

A missing kind of server is an error, never a skip: ./tests/run.sh fetches both.

What tests print is shown at the end, for each that passed: they say what they did. If any failed, only failures are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from mysqlraft.sandbox.servers import ENGINES, Engine, Installation, Server, find_servers
from tests.harness.pool import LendServers, ServerFactory, ServerPool

# The same examples in every run; `--hypothesis-profile=default` looks for new ones. How long they take says only how
# busy the machine is.
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Whoever wants to see what is printed while it is, or to debug, gets one process."""
    if config.option.capture == "no" or config.option.usepdb:
        config.option.numprocesses, config.option.dist = 0, "no"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    passed = terminalreporter.stats.get("passed", [])
    told = [report for report in passed if report.when == "call" and report.capstdout]
    if terminalreporter.stats.keys() & {"failed", "error"}:
        return  # Nothing may hide what went wrong.
    if told:
        terminalreporter.section("what was done")
    for report in told:
        terminalreporter.line(f"{report.nodeid}:")
        for line in report.capstdout.rstrip().splitlines():
            terminalreporter.line(f"    {line}")


@pytest.fixture(scope="session")
def installations() -> dict[Engine, Installation]:
    """Both kinds of server program."""
    return find_servers()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each kind of server in turn."""
    kind: Engine = request.param
    return kind


@pytest.fixture
def installation(engine: Engine, installations: dict[Engine, Installation]) -> Installation:
    """The server program of this engine."""
    return installations[engine]


@pytest.fixture(scope="session")
def server_pools(
    installations: dict[Engine, Installation], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Engine, ServerPool]]:
    """The pools behind `server` and `servers`."""
    directory = tmp_path_factory.mktemp("servers")
    pools = {engine: ServerPool(installation, directory) for engine, installation in installations.items()}
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.fixture
def servers(engine: Engine, server_pools: dict[Engine, ServerPool]) -> Iterator[LendServers]:
    """Lends running servers, empty, with distinct server ids. A test may do anything to them."""
    pool = server_pools[engine]
    lent: list[Server] = []

    def lend(count: int, /) -> list[Server]:
        borrowed = pool.borrow(count)
        lent.extend(borrowed)
        return borrowed

    yield lend
    pool.give_back(lent)


@pytest.fixture
def server(servers: LendServers) -> Server:
    """One running server, empty. A test may do anything to it."""
    return servers(1)[0]


@pytest.fixture
def server_factory(installation: Installation, tmp_path: Path) -> Iterator[ServerFactory]:
    """Makes servers with options of their own: keyword arguments of Server.create, and start=False not to start."""
    with contextlib.ExitStack() as stack:
        made = 0

        def make(*, start: bool = True, **arguments: Any) -> Server:
            nonlocal made
            made += 1
            # The pool's servers count from 1: ids stay distinct if a test uses both.
            arguments.setdefault("server_id", 1000 + made)
            server = Server.create(installation, tmp_path / f"server-{made}", **arguments)
            stack.callback(server.remove)
            if start:
                server.start()
            return server

        yield make
