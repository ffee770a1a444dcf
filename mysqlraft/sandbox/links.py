"""Every link between the daemons of a cluster through a relay of its own, so that each can be delayed or cut.

The relays run in one child process: in the process of the demo or the tests they would share an interpreter with the
writers, and every message would wait for them. The child is told what to do by lines of JSON, and ends with its parent.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mysqlraft.sandbox.ports import LOOPBACK
from mysqlraft.sandbox.process import spawn_bound
from mysqlraft.sandbox.relay import Address, CutMode, Relay

# A child that does not answer within this many seconds is broken.
_PATIENCE = 20.0

Link = tuple[int, int]


class Links:
    """The relays between sites, each from one site to another, for the connections that the first one makes."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._addresses: dict[Link, Address] = {}
        # Cutting and healing may come from other threads than the one that started it all.
        self._asking = threading.Lock()

    def start(self, targets: Mapping[int, Address], delay: float) -> None:
        """Starts one relay for each ordered pair of sites. `delay`: seconds, in each direction."""
        with socket.create_server((LOOPBACK, 0)) as listener:
            listener.settimeout(_PATIENCE)
            self._process = spawn_bound(
                [sys.executable, "-m", "mysqlraft.sandbox.links", str(listener.getsockname()[1])],
                env=child_environment(),
            )
            self._socket, _ = listener.accept()
        self._socket.settimeout(_PATIENCE)
        pairs = [(one, other) for one in targets for other in targets if one != other]
        ports = self._ask(do="start", delay=delay, links=[[*pair, *targets[pair[1]]] for pair in pairs])
        self._addresses = {pair: (LOOPBACK, port) for pair, port in zip(pairs, ports, strict=True)}

    def address(self, site: int, other: int) -> Address:
        """Where `site` reaches `other`."""
        return self._addresses[site, other]

    def cut(self, site: int, mode: CutMode = "blackhole") -> None:
        """Cuts a site off from all others, in both directions."""
        self._ask(do="cut", site=site, mode=mode)

    def heal(self, site: int) -> None:
        self._ask(do="heal", site=site)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _ask(self, **command: Any) -> Any:
        if self._socket is None:
            raise RuntimeError("the relays have not been started")
        with self._asking:
            self._socket.sendall(json.dumps(command).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                more = self._socket.recv(1 << 16)
                if not more:
                    raise RuntimeError("the relays' process has ended")
                answer += more
        return json.loads(answer)


def child_environment() -> dict[str, str]:
    """The environment for a child that imports this very package, installed or not."""
    package = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))}


async def _serve(port: int) -> None:
    """The child: obeys until its parent closes the connection."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    relays: dict[Link, Relay] = {}
    while line := await reader.readline():
        command = json.loads(line)
        answer: Any = None
        match command["do"]:
            case "start":
                for one, other, host, target in command["links"]:
                    relay = relays[one, other] = Relay((host, target), delay=command["delay"])
                    await relay.start()
                answer = [relay.address[1] for relay in relays.values()]
            case "cut":
                for pair, relay in relays.items():
                    if command["site"] in pair:
                        relay.cut(command["mode"])
            case "heal":
                for pair, relay in relays.items():
                    if command["site"] in pair:
                        relay.heal()
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
