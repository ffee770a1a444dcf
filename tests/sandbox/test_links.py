"""Can a site be cut off from all others, and nobody else?"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from mysqlraft.sandbox.links import Links
from mysqlraft.sandbox.ports import LOOPBACK
from mysqlraft.sandbox.relay import Address


@contextlib.contextmanager
def echo() -> Iterator[Address]:
    """A server that sends back what it gets."""

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(100):
                connection.sendall(data)

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server((LOOPBACK, 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)


def answers(address: Address) -> bool:
    """Whether what is sent there comes back."""
    try:
        with socket.create_connection(address, timeout=0.5) as connection:
            connection.sendall(b"hello")
            return connection.recv(100) == b"hello"
    except OSError:
        return False


@pytest.mark.parametrize("mode", ["reset", "blackhole"])
def test_a_site_is_cut_off_in_both_directions(mode: str) -> None:
    with contextlib.ExitStack() as stack:
        targets = {site: stack.enter_context(echo()) for site in (1, 2, 3)}
        links = Links()
        stack.callback(links.close)
        links.start(targets, delay=0.0)
        pairs = [(one, other) for one in targets for other in targets if one != other]

        def through() -> set[tuple[int, int]]:
            return {pair for pair in pairs if answers(links.address(*pair))}

        assert through() == set(pairs)
        links.cut(3, "reset" if mode == "reset" else "blackhole")
        assert through() == {(1, 2), (2, 1)}
        links.heal(3)
        assert through() == set(pairs)


def test_the_relays_end_with_their_owner() -> None:
    with echo() as target:
        links = Links()
        links.start({1: target, 2: target}, delay=0.0)
        address = links.address(1, 2)
        assert answers(address)
        links.close()
        assert not answers(address)
