"""Questions from site to site, with one answer each, beside Raft's own messages (which need none).

They travel on the control connections. A question or an answer that is lost is not sent again: who asks learns that no
answer came, and cannot know whether the other site has done what it was asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

MAX_ANSWERING = 64
"""Questions of all peers that are being answered at a time. More are dropped: their askers ask again, or give up."""


class NoAnswer(Exception):
    """The text says why. `sent`: the question may have arrived, and been acted upon."""

    def __init__(self, reason: str, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class Calls:
    """One site's questions and answers."""

    def __init__(self, send: Callable[[int, bool, int, bytes], bool], first_number: int) -> None:
        """`send(site, is it a question, number, body)` is false if there is no way to the site. `first_number`: random,
        so that an answer to an earlier life of this site is not taken for one to this."""
        self._send = send
        self._number = first_number
        self._waiting: dict[int, tuple[int, asyncio.Future[bytes]]] = {}
        """number -> (site that was asked, its answer)."""
        self._answering: set[asyncio.Task[None]] = set()
        self.answer: Callable[[int, bytes], Awaitable[bytes]] | None = None
        """(asking site, question) -> answer."""

    async def ask(self, site: int, question: bytes, seconds: float) -> bytes:
        """The answer of `site`. Raises NoAnswer."""
        self._number += 1
        number = self._number
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[number] = site, future
        try:
            if not self._send(site, True, number, question):
                raise NoAnswer("there is no connection to it", sent=False)
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            raise NoAnswer(f"nothing came back within {seconds:.0f} s", sent=True) from None
        finally:
            del self._waiting[number]

    def received(self, site: int, asks: bool, number: int, body: bytes) -> None:
        """A question or an answer has arrived from `site`."""
        if asks:
            if self.answer is not None and len(self._answering) < MAX_ANSWERING:
                task = asyncio.get_running_loop().create_task(self._reply(site, number, self.answer(site, body)))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            return
        asked, future = self._waiting.get(number, (0, None))
        if asked == site and future is not None and not future.done():
            future.set_result(body)

    async def _reply(self, site: int, number: int, answer: Awaitable[bytes]) -> None:
        try:
            self._send(site, False, number, await answer)
        except Exception:
            # Whoever asked waits no longer than its own time; a question that fails must not end the daemon.
            logger.exception("a question of site %d could not be answered", site)

    async def stop(self) -> None:
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)
