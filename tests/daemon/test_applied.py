"""Waiting until the server holds the log up to an index: both processes' parts of it."""

from __future__ import annotations

import asyncio
import socket
import threading

import msgpack
import pytest

from mysqlraft.applied import Applied
from mysqlraft.ipc import LogReader, Say


def test_waiters_are_told_and_only_the_next_index_is_asked_for() -> None:
    async def work() -> None:
        applied, asked = Applied(), list[int]()
        waiting = [asyncio.create_task(applied.wait(index)) for index in (7, 5, 9)]
        await asyncio.sleep(0)
        applied.attach(asked.append)
        assert asked == [5]
        applied.reached(4)
        applied.reached(7)
        await asyncio.gather(*waiting[:2])
        assert not waiting[2].done()
        assert asked == [5, 5, 9]
        await applied.wait(7)  # known by now
        applied.detach()  # the replica process ends, and the next one begins further back
        applied.attach(asked.append)
        assert asked[-1] == 9
        again = asyncio.create_task(applied.wait(7))
        await asyncio.sleep(0)
        assert asked[-1] == 7
        applied.reached(9)
        await asyncio.gather(again, waiting[2])

    asyncio.run(work())


def test_nobody_is_asked_for_who_does_not_wait_any_more() -> None:
    async def work() -> None:
        applied, asked = Applied(), list[int]()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await applied.wait(5)
        applied.attach(asked.append)
        applied.reached(1)
        assert asked == []

    asyncio.run(work())


def test_who_waits_wakes_the_reader_of_the_log() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = LogReader(theirs, threading.Event(), lambda: None)
        assert reader.awaited == 0
        ours.sendall(msgpack.packb((Say.REACH, 12)))
        assert reader.take(20) == [], "at once, and not after 20 s"
        assert reader.awaited == 12
        ours.sendall(msgpack.packb((Say.ENTRIES, [(12, 1, 1, 1, b"x")])))
        assert [entry.index for entry in reader.take(20)] == [12]
        reader.reached(12)
        assert reader.awaited == 0
        assert msgpack.unpackb(ours.recv(100)) == [Say.REACHED, 12]
