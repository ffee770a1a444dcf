"""The driver's disk: the thread that the log's writes are synced in, and the removal of what was compacted."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from mysqlraft.raft.store import Store, StoreError

logger = logging.getLogger(__name__)

LAST_WRITE_SECONDS = 5.0
SWEEP_ENTRIES = 2000
SWEEP_PAUSE_SECONDS = 0.05
"""Compacted entries are removed so many at a time, with this between: 40,000 in a second."""


class Writer:
    """The thread that writes. It takes one batch at a time and reports back on the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._work: queue.SimpleQueue[tuple[Callable[[], None], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="raft-writer", daemon=True)
        self._thread.start()

    def write(self, prepared: Callable[[], None], done: Any) -> None:
        """Calls `prepared()` (Store.prepare) and, when that is done, `done(error or None)` on the loop."""
        self._work.put((prepared, done))

    async def stop(self) -> None:
        """Until all that was asked for is written. Bounded: a disk that hangs must not keep the daemon from exiting."""
        written = asyncio.Event()
        self.write(lambda: None, lambda error: written.set())
        self._work.put(None)
        try:
            async with asyncio.timeout(LAST_WRITE_SECONDS):
                await written.wait()
        except TimeoutError:
            logger.error("the last write did not return within %.0f s: leaving without it", LAST_WRITE_SECONDS)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            prepared, done = work
            error: Exception | None = None
            try:
                prepared()
            except Exception as failure:
                error = failure
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(done, error)


class Sweeper:
    """Removes compacted entries, with pauses that leave the disk to the log."""

    def __init__(self, store: Store, failed: Callable[[Exception], None]) -> None:
        self._store = store
        self._failed = failed
        self._sweeping: asyncio.Task[None] | None = None
        self._more = False
        """The log's base has moved since the last slice was begun."""
        self._stopped = False

    def start(self) -> None:
        """The log's base has moved, or may have before this site's start."""
        self._more = True
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.get_running_loop().create_task(self._sweep(), name="sweep")

    async def stop(self) -> None:
        """Until the slice that was begun is gone; the rest is left for another time."""
        self._stopped = True
        if self._sweeping is not None:
            await self._sweeping

    async def _sweep(self) -> None:
        try:
            while self._more and not self._stopped:
                self._more = False
                if await asyncio.to_thread(self._store.sweep, SWEEP_ENTRIES):
                    self._more = True
                    await asyncio.sleep(SWEEP_PAUSE_SECONDS)
        except StoreError as error:
            self._failed(error)
