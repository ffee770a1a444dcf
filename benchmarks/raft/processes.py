"""The processes of one cluster: told what to do by lines of JSON (programs/), and how much of a processor they take."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mysqlraft.sandbox.links import child_environment
from mysqlraft.sandbox.process import spawn_bound

START_SECONDS = 30.0
ERROR_BYTES = 2000
"""So much of what a process has said at last is shown when it ends."""


class PeerError(Exception):
    """A contender does not do what it should: that is the end of the run, not a figure."""


class Program:
    """One process, which ends with this one at the latest."""

    def __init__(self, *argv: str, path: str = "") -> None:
        """`path`: a directory that Python is to look for modules in, too."""
        environment = child_environment()
        if path:
            environment["PYTHONPATH"] += f":{path}"
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._process = spawn_bound(
            [*argv], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said
        )

    def tell(self, do: str, **more: object) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **more: object) -> dict[str, Any]:
        self.tell(do, **more)
        return self.hear()

    def processor_seconds(self) -> float:
        """That all its threads, those that are there, have taken so far."""
        total = 0
        for task in Path(f"/proc/{self._process.pid}/task").iterdir():
            with suppress(FileNotFoundError):  # a thread that has just ended
                total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def _ended(self) -> PeerError:
        self._process.wait()
        self._said.seek(0)
        said = self._said.read()[-ERROR_BYTES:].decode(errors="replace").strip()
        return PeerError(f"{self._process.args!r} has ended: {said or 'without a word'}")


class Cluster:
    """A contender's servers and the clients that propose; the same processes where a server takes proposals itself."""

    def __init__(self, servers: Sequence[Program], clients: Sequence[Program], leader_only: bool = False) -> None:
        """`leader_only`: whoever does not lead takes no proposals."""
        self._servers = servers
        self._all = list(dict.fromkeys([*servers, *clients]))
        self._clients = clients
        self._leader_only = leader_only

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for each in self._all:
            each.end()

    def wait_for_leader(self) -> Program:
        """Returns the client beside it."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            for client in self._clients:
                if client.ask("role")["leader"]:
                    return client
            time.sleep(0.05)
        raise PeerError(f"no leader within {START_SECONDS:.0f} s")

    def rate(self, outstanding: int, size: int, warm_up: float, seconds: float) -> tuple[float, float]:
        """Commits in a second, and the processor seconds that the servers take for 100,000 of them."""
        clients = [self.wait_for_leader()] if self._leader_only else list(self._clients)
        for number, client in enumerate(clients):
            share = (number + 1) * outstanding // len(clients) - number * outstanding // len(clients)
            client.ask("load", outstanding=share, bytes=size)
        time.sleep(warm_up)
        before, processor = self._counts(clients), self._processor_seconds()
        time.sleep(seconds)
        after, processor = self._counts(clients), self._processor_seconds() - processor
        for client in clients:
            client.tell("rest")
        for client in clients:
            client.hear()
        pairs = list(zip(before, after, strict=True))
        commits = sum(end["committed"] - begin["committed"] for begin, end in pairs)
        if not commits:
            raise PeerError(f"nothing committed within {seconds:g} s")
        rates = [(end["committed"] - begin["committed"]) / (end["seconds"] - begin["seconds"]) for begin, end in pairs]
        return sum(rates), processor * 100_000 / commits

    def latency(self, count: int, size: int) -> list[float]:
        """Seconds that each of so many proposals took, one after the other, at the leader."""
        took: list[float] = self.wait_for_leader().ask("latency", count=count, bytes=size)["seconds"]
        return took

    def idle(self, seconds: float) -> float:
        """How much of a processor a server takes on the average while there is nothing to do."""
        before = self._processor_seconds()
        time.sleep(seconds)
        return (self._processor_seconds() - before) / seconds / len(self._servers)

    def _processor_seconds(self) -> float:
        return sum([server.processor_seconds() for server in self._servers])

    @staticmethod
    def _counts(clients: Sequence[Program]) -> list[dict[str, Any]]:
        for client in clients:
            client.tell("count")
        return [client.hear() for client in clients]
