"""TCP ports on loopback that stay ours while a server is down.

Binding port 0 and closing the socket is not enough for servers that are killed and restarted: the kernel hands the
same number to another program's outgoing connection in the meantime, and the restart fails. Ports are therefore taken
from outside the kernel's ephemeral range, and a lock file tells other sandboxes on the machine to keep off.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

LOOPBACK = "127.0.0.1"
_LOWEST, _HIGHEST = 10_000, 65_535


class PortLease:
    """One reserved port; free again after `release()` or at the end of the process."""

    def __init__(self, port: int, lock: int) -> None:
        self.port = port
        self._lock: int | None = lock

    def release(self) -> None:
        """Gives the port back. Does nothing the second time."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def reserve_port(port: int | None = None) -> PortLease:
    """Reserves `port`, or a free one. Raises OSError if it (or every candidate tried) is taken."""
    if port is not None:
        lease = _try_reserve(port)
        if lease is None:
            raise OSError(f"port {port} on {LOOPBACK} is in use")
        return lease
    low, high = _ephemeral_range()
    candidates = [n for n in range(_LOWEST, _HIGHEST + 1) if not low <= n <= high]
    for candidate in random.SystemRandom().sample(candidates, k=min(1000, len(candidates))):
        lease = _try_reserve(candidate)
        if lease is not None:
            return lease
    raise OSError(f"no free port found on {LOOPBACK} outside {low}-{high}")


def _ephemeral_range() -> tuple[int, int]:
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    except OSError:
        return 32_768, 60_999
    return int(low), int(high)


def _try_reserve(port: int) -> PortLease | None:
    directory = Path(tempfile.gettempdir()) / f"mysqlraft-ports-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(directory / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with socket.socket() as probe:
            # As the servers do: a connection that lingers in TIME_WAIT is no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
    except OSError:
        os.close(lock)
        return None
    return PortLease(port, lock)
