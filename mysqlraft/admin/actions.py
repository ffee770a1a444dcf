"""What the admin API does, beside telling: JSON in, JSON out; docs/operations.md lists it.

Every action is bounded by its `timeout` (seconds), and waits for its outcome.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Protocol

from mysqlraft.admin.http import Action, Page
from mysqlraft.raft.operations import MAX_SECONDS, TRANSFER, NotDone, Outcome, Request, change_named

DEFAULT_SECONDS = 10.0
MAX_NAME = 200
"""Characters of who it is that decides something."""

_STATUS = {
    Outcome.INVALID: HTTPStatus.BAD_REQUEST,
    Outcome.REFUSED: HTTPStatus.CONFLICT,
    Outcome.NO_LEADER: HTTPStatus.SERVICE_UNAVAILABLE,
    Outcome.UNKNOWN: HTTPStatus.GATEWAY_TIMEOUT,
}


class Site(Protocol):
    """What actions need of the site itself."""

    async def read_index(self) -> int:
        """An index that covers everything committed, anywhere, before this call."""

    async def wait_applied(self, index: int) -> None:
        """Until this site's server holds everything up to `index`. Raises NotDone if it never will as things are."""

    def applied(self) -> int | None:
        """Up to where it holds it now, as far as is known."""

    async def skip(self, index: int, by: str) -> str:
        """Goes on behind the statement at which the site has stopped; why it had. Raises NotDone if it has not."""

    async def skip_captured(self, wanted: str, by: str) -> tuple[str, str, str]:
        """Leaves out the own transaction at which capture has stopped: what it is, why capture had, and the path of the
        file that it is kept in. Raises NotDone if capture has not stopped at it."""

    async def wait_skipped(self, rows: str) -> None:
        """Until that file is written."""

    def state(self) -> str:
        """The state of replication here, and the reason for it."""


def actions(perform: Callable[[Request, float], Awaitable[dict[str, Any]]], site: Site) -> dict[str, Action]:
    """path -> action."""

    async def members(wish: dict[str, Any]) -> dict[str, Any]:
        seconds = _seconds(wish)
        change = change_named(wish.pop("change", None))
        return await perform(Request.parse(change.value, wish), seconds)

    async def transfer(wish: dict[str, Any]) -> dict[str, Any]:
        seconds = _seconds(wish)
        if "site" in wish and not wish["site"]:
            raise NotDone(Outcome.INVALID, "site: is nobody; a member's name or id, or nothing for the fittest voter")
        return await perform(Request.parse(TRANSFER, wish), seconds)

    async def barrier(wish: dict[str, Any]) -> dict[str, Any]:
        seconds = _seconds(wish)
        _nothing_else(wish)
        try:
            async with asyncio.timeout(seconds) as limit:
                index = await site.read_index()
        except TimeoutError:
            reason = f"no leader has answered within {seconds:g} s: what is committed is not known here"
            raise NotDone(Outcome.NO_LEADER, reason) from None
        return await _applied(index, (limit.when() or 0.0) - asyncio.get_running_loop().time(), seconds)

    async def wait(wish: dict[str, Any]) -> dict[str, Any]:
        seconds = _seconds(wish)
        index = _index(wish)
        _nothing_else(wish)
        return await _applied(index, seconds, seconds)

    async def skip(wish: dict[str, Any]) -> dict[str, Any]:
        seconds = _seconds(wish)
        by, captured = wish.pop("by", None), wish.pop("captured", None)
        index = _index(wish) if captured is None else None
        _nothing_else(wish)
        if type(by) is not str or not 0 < len(by) <= MAX_NAME:
            raise NotDone(Outcome.INVALID, "by: is missing: who has decided this")
        if index is not None:
            return {"index": index, "reason": await site.skip(index, by)}
        if type(captured) is not str or not 0 < len(captured) <= MAX_NAME:
            raise NotDone(Outcome.INVALID, f"captured: {captured!r:.40} is not a GTID, nor a binlog FILE:OFFSET")
        place, reason, rows = await site.skip_captured(captured, by)
        try:
            async with asyncio.timeout(seconds):
                await site.wait_skipped(rows)
        except TimeoutError:
            raise NotDone(
                Outcome.UNKNOWN,
                f"the decision is kept, but {rows} is not written within {seconds:g} s, and only then capture goes on "
                f"behind it; this site is {site.state()}",
            ) from None
        return {"captured": place, "reason": reason, "rows": rows}

    async def _applied(index: int, left: float, seconds: float) -> dict[str, Any]:
        started = time.monotonic()
        try:
            async with asyncio.timeout(left):
                await site.wait_applied(index)
        except TimeoutError:
            held = site.applied()
            reason = f"not applied within {seconds:g} s: this site has applied up to {held}, not to {index}"
            if held is not None and held >= index:  # as it said last: nobody says so now
                reason = f"no answer within {seconds:g} s from what applies here; `mysqlraft status` says what it is at"
            raise NotDone(Outcome.UNKNOWN, reason) from None
        return {"index": index, "waited_ms": round((time.monotonic() - started) * 1000, 3)}

    do = {"/members": members, "/transfer": transfer, "/barrier": barrier, "/wait": wait, "/skip": skip}
    return {path: _answering(action) for path, action in do.items()}


def _answering(do: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> Action:
    async def action(wish: dict[str, Any]) -> Page:
        try:
            return Page.json(await do(wish))
        except NotDone as error:
            return Page.json({"error": str(error), "outcome": error.outcome.value}, _STATUS[error.outcome])

    return action


def _seconds(wish: dict[str, Any]) -> float:
    seconds = wish.pop("timeout", DEFAULT_SECONDS)
    if type(seconds) not in (int, float) or not 0 < seconds <= MAX_SECONDS:
        raise NotDone(Outcome.INVALID, f"timeout: {seconds!r:.40} is not allowed: seconds, up to {MAX_SECONDS:g}")
    return float(seconds)


def _index(wish: dict[str, Any]) -> int:
    index = wish.pop("index", None)
    if index is None:
        raise NotDone(Outcome.INVALID, "index: is missing: a log index")
    if type(index) is not int or not 0 <= index < 1 << 63:
        raise NotDone(Outcome.INVALID, f"index: {index!r:.40} is not a log index")
    return index


def _nothing_else(wish: Mapping[str, Any]) -> None:
    if wish:
        raise NotDone(Outcome.INVALID, f"{', '.join(wish)}: not known here")
