"""A witness has no server, and so no replica process: this stands where `Supervisor` is at other sites."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mysqlraft.admin.status import State
from mysqlraft.config import Config
from mysqlraft.raft.operations import NotDone, Outcome


class Witness:
    """Nothing to start, nothing to stop."""

    @property
    def status(self) -> dict[str, Any]:
        return {"state": State.RUNNING.value, "reason": "", "server": None}

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def hold(self, reason: str) -> None:
        pass

    async def reload(self, config: Config) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def wait_report(self, is_it: Callable[[dict[str, Any]], bool]) -> None:
        """Nothing is captured here."""

    async def wait_applied(self, index: int) -> None:
        raise NotDone(Outcome.REFUSED, "this site is a witness: it has no server to read from")
