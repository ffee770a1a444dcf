"""sd_notify: what the daemon tells the service manager, if there is one."""

from __future__ import annotations

import os
import socket
import time


def notify(*lines: str) -> None:
    """Sends lines such as READY=1 or STATUS=... to the manager that NOTIFY_SOCKET names; without one, does nothing.

    A manager that cannot be reached is no reason to stop working: the error is dropped.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as manager:
            manager.sendto("\n".join(lines).encode(), address)
    except OSError:
        pass


def reloading() -> None:
    """A reload has begun; the next READY=1 ends it. Type=notify-reload wants to know when, on the monotonic clock."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_seconds() -> float | None:
    """How often WATCHDOG=1 is due at the latest, in seconds; None if the manager does not watch this process."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) else None
