"""The driver's disk: threads for the calls that wait for it, and the removal of what was compacted."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from mysqlraft.raft.store import Store, StoreError

logger = logging.getLogger(__name__)

LAST_CALL_SECONDS = 5.0
"""So long the end waits for the calls that the disk has not come back from."""
SWEEP_ENTRIES = 2000
SWEEP_PAUSE_SECONDS = 0.05
"""Compacted entries are removed so many at a time, with this between: 40,000 in a second."""


class DiskThread:
    """A thread for calls that wait for the disk. It makes one at a time and reports back on the event loop.

    It is a daemon thread, which those of asyncio.to_thread and of executors are not: a process that ends waits for
    these, and a disk that hangs must not keep it from ending.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Any, Exception | None], None]] | None]
        self._work = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        """That of the first call, with which the thread begins."""
        self._stopped = False

    def call(self, function: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        """Calls `function()` after those before, and then, on the loop, `done` with what it returned or its error.
        Raises RuntimeError after `stop`: nobody would ever be told."""
        if self._stopped:
            raise RuntimeError(f"the thread {self._name} has been stopped")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            threading.Thread(target=self._run, args=(self._loop,), name=self._name, daemon=True).start()
        self._work.put((function, done))

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function(*arguments)` returns. It is called even if nobody waits for it any more."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(result: Any, error: Exception | None) -> None:
            if answer.done():
                return  # cancelled
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        self.call(partial(function, *arguments), done)
        return await answer

    async def stop(self) -> bool:
        """Until all that was asked for is done. Bounded: whether it is."""
        if self._loop is None:
            self._stopped = True
            return True
        finished = asyncio.Event()
        self.call(lambda: None, lambda result, error: finished.set())
        self._stopped = True
        self._work.put(None)
        try:
            async with asyncio.timeout(LAST_CALL_SECONDS):
                await finished.wait()
        except TimeoutError:
            logger.error(
                "the disk has not come back from a call within %.0f s: leaving without it thread=%s",
                LAST_CALL_SECONDS, self._name,
            )  # fmt: skip
            return False
        return True

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while (work := self._work.get()) is not None:
            function, done = work
            result: Any = None
            error: Exception | None = None
            try:
                result = function()
            except Exception as failure:
                error = failure
            if not loop.is_closed():
                loop.call_soon_threadsafe(done, result, error)


class Sweeper:
    """Removes compacted entries, with pauses that leave the disk to the log."""

    def __init__(self, store: Store, failed: Callable[[Exception], None]) -> None:
        self._store = store
        self._failed = failed
        self._disk = DiskThread("raft-sweeper")
        self._sweeping: asyncio.Task[None] | None = None
        self._more = False
        """The log's base has moved since the last slice was begun."""

    def start(self) -> None:
        """The log's base has moved, or may have before this site's start."""
        self._more = True
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.get_running_loop().create_task(self._sweep(), name="sweep")

    async def stop(self) -> bool:
        """Until the slice that was begun is gone; the rest is left for another time. See DiskThread.stop."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        return await self._disk.stop()

    async def _sweep(self) -> None:
        try:
            while self._more:
                self._more = False
                if await self._disk.run(self._store.sweep, SWEEP_ENTRIES):
                    self._more = True
                    await asyncio.sleep(SWEEP_PAUSE_SECONDS)
        except StoreError as error:
            self._failed(error)
