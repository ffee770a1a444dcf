"""One node of ours, as the daemon runs it: the real driver, transport and store, and proposals from here.

argv: directory, site, tick in seconds, bytes on the way to each other node, directory of certificates or "", then for
every site (from 1 on) where it listens and, separated by "/", where this site reaches it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from mysqlraft import collector
from mysqlraft.certificates import settings
from mysqlraft.raft import Configuration, LevelDBStore, Node, Server, bootstrap
from mysqlraft.raft.limits import Limits
from mysqlraft.raft.tls import load

CLUSTER = "benchmark"


class Client:
    """Proposes at its node and sees there what has committed."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._session = time.time_ns()
        self._sequence = 0
        self._outstanding = 0
        self._payload = b""
        node.watch_commits(self._fill)

    @property
    def committed(self) -> int:
        return self._sequence - self._node.outstanding_proposals

    def load(self, outstanding: int, size: int) -> None:
        self._outstanding, self._payload = outstanding, payload(size)
        self._fill()

    async def rest(self) -> None:
        self._outstanding = 0
        await self._nothing_outstanding()

    async def latency(self, count: int, size: int) -> list[float]:
        self._payload = payload(size)
        took: list[float] = []
        for _ in range(count):
            began = time.perf_counter()
            self._propose()
            await self._nothing_outstanding()
            took.append(time.perf_counter() - began)
        return took

    def _fill(self) -> None:
        for _ in range(self._outstanding - self._node.outstanding_proposals):
            self._propose()

    def _propose(self) -> None:
        self._sequence += 1
        self._node.propose(self._session, self._sequence, self._payload)

    async def _nothing_outstanding(self) -> None:
        while self._node.outstanding_proposals:
            await self._node.wait_committed(self._node.commit_index + 1)


def payload(size: int) -> bytes:
    return (b"\x00\xff" * size)[:size]


async def serve(directory: str, own: str, tick: str, window: str, certificates: str, *where: str) -> None:
    site = int(own)
    listens, reached = zip(*[each.split("/") for each in where], strict=True)
    configuration = Configuration(Server(each, f"site{each}", address) for each, address in enumerate(listens, 1))
    name = f"site{site}"
    files = settings(Path(certificates), name) if certificates else None
    store = LevelDBStore(directory, CLUSTER, site)
    bootstrap(store, configuration)
    node = Node(
        site, CLUSTER, store, listens[site - 1],
        addresses=dict(enumerate(reached, 1)),
        limits=Limits(window_bytes=int(window)),
        tick_seconds=float(tick),
        tls=load(Path(files["certificate"]), Path(files["key"]), Path(files["ca"]), name) if files else None,
    )  # fmt: skip
    await node.start()
    client = Client(node)
    collector.settle()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        print(json.dumps(await obey(command, node, client)), flush=True)
    await node.stop()
    store.close()


async def obey(command: dict[str, Any], node: Node, client: Client) -> dict[str, Any]:
    match command["do"]:
        case "role":
            return {"leader": node.leader == node.site}
        case "load":
            client.load(command["outstanding"], command["bytes"])
        case "count":
            return {"committed": client.committed, "seconds": time.perf_counter()}
        case "rest":
            await client.rest()
        case "latency":
            return {"seconds": await client.latency(command["count"], command["bytes"])}
        case unknown:
            raise ValueError(unknown)
    return {}


if __name__ == "__main__":
    uvloop.run(serve(*sys.argv[1:]))
