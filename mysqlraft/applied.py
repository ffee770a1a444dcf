"""Up to where the site's server holds the log, and who waits for it to hold more.

The replica process reports that twice a second. Only while somebody waits is it asked to say so at once: then it
answers as soon as it has got there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Applied:
    """The consensus process's side. Everything here is called on the event loop."""

    def __init__(self) -> None:
        self._index = 0
        """What the running replica process has said last; 0 before it has."""
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._ask: Callable[[int], None] | None = None

    async def wait(self, index: int) -> None:
        """Until everything up to `index` is applied, through as many replica processes as it takes."""
        if self._index >= index:
            return
        waiter = index, asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            self._ask_for_next()
            await waiter[1]
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def attach(self, ask: Callable[[int], None]) -> None:
        """A replica process begins to apply: `ask(index)` has it say when it has got there."""
        self._index, self._ask = 0, ask
        self._ask_for_next()

    def detach(self) -> None:
        """It has ended."""
        self._index, self._ask = 0, None

    def reached(self, index: int) -> None:
        """It says how far it is."""
        self._index = max(self._index, index)
        if not self._waiting:
            return
        for waiter in [waiter for waiter in self._waiting if waiter[0] <= index]:
            self._waiting.remove(waiter)
            if not waiter[1].done():
                waiter[1].set_result(None)
        self._ask_for_next()

    def _ask_for_next(self) -> None:
        if self._ask is not None and self._waiting:
            self._ask(min(index for index, _ in self._waiting))
