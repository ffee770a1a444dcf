"""Commits at one server at a steady rate, and watches when commits become visible at the others.

The same probe measures both sides of a comparison, and it has to be cheap, as it shares two cores with everything it
measures: one thread, no decoding, one `SELECT MAX(id)` (one dive into an index) in flight at a server, and only while
that server still lacks a commit that is watched. Asking costs the servers about as much as applying does, and the more
the longer a commit takes, so not every commit is watched. An arrival is known to about `PAUSE`, late, never early.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import pymysql
from pymysql.constants import COMMAND

Connection: TypeAlias = "pymysql.Connection[pymysql.cursors.Cursor]"

SCHEMA = "bench"
TABLE = "CREATE TABLE bench.events (id BIGINT NOT NULL PRIMARY KEY, payload VARCHAR(200) NOT NULL)"
PAYLOAD = "x" * 100

# Between an answer that did not show the commit and the next question to the same server.
PAUSE = 0.002


@dataclass(slots=True)
class Commit:
    """One commit: its row's id, when its statement was sent, when the server said OK, when each other showed it."""

    id: int
    sent: float
    confirmed: float = 0.0
    seen: list[float] = field(default_factory=list)

    @property
    def everywhere(self) -> float:
        """From the OK at the origin to visible at the last of the others; 0 if it was there even before the OK."""
        return max(0.0, max(self.seen) - self.confirmed)


class _Watched:
    """One of the other servers: what it has shown, and the question in flight."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.socket = connection._sock  # type: ignore[attr-defined]
        self.shown = 0
        self.asking = False
        self.ask_at = 0.0

    def ask(self) -> None:
        self.connection._execute_command(COMMAND.COM_QUERY, "SELECT MAX(id) FROM bench.events")  # type: ignore[attr-defined]
        self.asking = True

    def answer(self) -> int:
        self.connection._read_query_result()  # type: ignore[attr-defined]
        self.asking = False
        result = self.connection._result  # type: ignore[attr-defined]
        return int(result.rows[0][0] or 0)


def probe(
    origin: Connection, others: Sequence[Connection], *, rate: float, count: int, first: int, every: int = 1
) -> list[Commit]:
    """Commits `count` rows with ids from `first` on, `rate` a second; one of `every` is watched until it is visible
    everywhere. Returns those that are.

    Raises TimeoutError if one of `others` shows nothing new for 30 seconds.
    """
    watched = [_Watched(connection) for connection in others]
    commits: list[Commit] = []
    waiting: dict[int, deque[Commit]] = {id(w): deque() for w in watched}
    own_socket = origin._sock  # type: ignore[attr-defined]
    begun = time.monotonic()
    committing = False
    confirmed = first - 1
    progress = begun
    while len(commits) < count or committing or any(waiting.values()):
        now = time.monotonic()
        if now - progress > 30:
            behind = [number for number, w in enumerate(watched, 2) if waiting[id(w)]]
            raise TimeoutError(f"nothing new at server(s) {behind} for 30 s; {confirmed} is committed")
        due = begun + len(commits) / rate
        if not committing and len(commits) < count and now >= due:
            commits.append(Commit(first + len(commits), now))
            statement = f"INSERT INTO bench.events VALUES ({commits[-1].id}, '{PAYLOAD}')"
            origin._execute_command(COMMAND.COM_QUERY, statement)  # type: ignore[attr-defined]
            committing = True
        wake = due if not committing and len(commits) < count else now + 1
        for w in watched:
            if not w.asking and waiting[id(w)]:
                if now >= w.ask_at:
                    w.ask()
                else:
                    wake = min(wake, w.ask_at)
        sockets = [w.socket for w in watched if w.asking]
        if committing:
            sockets.append(own_socket)
        ready, _, _ = select.select(sockets, [], [], max(0.0, wake - time.monotonic()))
        now = time.monotonic()
        if own_socket in ready:
            origin._read_query_result()  # type: ignore[attr-defined]
            committing = False
            commits[-1].confirmed = now
            confirmed += 1
            if len(commits) % every == 0:
                for w in watched:
                    waiting[id(w)].append(commits[-1])
        for w in watched:
            if w.socket in ready:
                shown = w.answer()
                queue = waiting[id(w)]
                if shown > w.shown:
                    progress = now
                w.shown = shown
                while queue and queue[0].id <= shown:
                    queue.popleft().seen.append(now)
                w.ask_at = now + PAUSE
    return commits[every - 1 :: every]
