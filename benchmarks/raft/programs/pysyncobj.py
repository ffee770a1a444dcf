"""One node of PySyncObj. argv: directory, its own address, the others'.

Its loop runs here, in the main thread, and what has committed is replaced from its callback: with its own thread and
this one, the two would take turns at the interpreter, which costs it a good part of its speed. It never makes a
snapshot here, as nobody else does. It has no setting that would make it sync what it writes to its journal.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, replicated  # type: ignore[import-not-found]

TICK_SECONDS = 0.01
"""How long it may wait for its sockets: as long as its appends wait for company. Shorter and longer are slower."""


class Log(SyncObj):  # type: ignore[misc]
    """A log that is for nothing but being written."""

    @replicated  # type: ignore[untyped-decorator]
    def put(self, payload: bytes) -> None:
        pass


class Client:
    def __init__(self, log: Log) -> None:
        self._log = log
        self._outstanding = 0
        self._goal = 0
        self._payload = b""
        self.committed = 0

    def load(self, outstanding: int, size: int) -> None:
        self._goal, self._payload = outstanding, bytes(size)
        while self._outstanding < self._goal:
            self._propose()

    def rest(self) -> None:
        self._goal = 0
        self._wait()

    def latency(self, count: int, size: int) -> list[float]:
        self._payload = bytes(size)
        took: list[float] = []
        for _ in range(count):
            began = time.perf_counter()
            self._propose()
            self._wait()
            took.append(time.perf_counter() - began)
        return took

    def _propose(self) -> None:
        self._outstanding += 1
        self._log.put(self._payload, callback=self._done)

    def _done(self, result: Any, error: Any) -> None:
        self._outstanding -= 1
        self.committed += not error
        if self._outstanding < self._goal:
            self._propose()

    def _wait(self) -> None:
        while self._outstanding:
            self._log.doTick(TICK_SECONDS)


def main() -> None:
    directory, own, *others = sys.argv[1:]
    log = Log(
        own,
        others,
        SyncObjConf(
            autoTick=False,
            appendEntriesPeriod=0.01,
            journalFile=f"{directory}/journal",
            logCompactionMinEntries=1 << 40,
            logCompactionMinTime=1 << 40,
        ),
    )
    client = Client(log)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=read, args=[lines], daemon=True).start()
    while True:
        log.doTick(TICK_SECONDS)
        try:
            line = lines.get_nowait()
        except queue.Empty:
            continue
        if not line:
            return
        print(json.dumps(obey(json.loads(line), log, client)), flush=True)


def read(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    lines.put("")


def obey(command: dict[str, Any], log: Log, client: Client) -> dict[str, Any]:
    match command["do"]:
        case "role":
            leader = log._getLeader()
            return {"leader": leader is not None and leader == log.selfNode and log.isReady()}
        case "load":
            client.load(command["outstanding"], command["bytes"])
        case "count":
            return {"committed": client.committed, "seconds": time.perf_counter()}
        case "rest":
            client.rest()
        case "latency":
            return {"seconds": client.latency(command["count"], command["bytes"])}
        case unknown:
            raise ValueError(unknown)
    return {}


if __name__ == "__main__":
    main()
