"""Linearizable reads on their way (Ongaro's thesis, 6.4): the leader's, which wait until a majority has confirmed that
it still leads, and a follower's, which it has asked its leader about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mysqlraft.raft.quorum import agreed


class PendingRead(NamedTuple):
    round: int
    """Confirmed once a majority has answered a heartbeat of at least this round."""
    index: int  # type: ignore[assignment]  # shadows tuple.index
    asker: int
    """A follower's site id, or this site's."""
    context: Any


class Reads:
    """Those of one site. They do not outlive its role, nor its leader."""

    def __init__(self, site: int, first_attempt: int) -> None:
        """`first_attempt`: random, so that an answer to an earlier life of this site is not taken for one to this."""
        self._site = site
        self._attempt = first_attempt
        self._asked: dict[int, Any] = {}
        """Follower: attempt -> context of reads that the leader has been asked about."""
        self.round = 0
        """Leader: the number of the last round of heartbeats."""
        self._answered: dict[int, int] = {}
        """Leader: the last round that each follower has answered."""
        self.confirming: list[PendingRead] = []
        self.early: list[tuple[int, Any]] = []
        """(asker, context) of reads that wait for this leader's first commit."""

    def clear(self) -> None:
        """The role changes: who asked asks again."""
        self.confirming.clear()
        self.early.clear()
        self._asked.clear()

    # ---- the leader's ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """This site leads from now on."""
        self.round = 0
        self._answered = {}

    def hold(self, asker: int, context: Any) -> None:
        """A read that has come before this leader's first commit."""
        self.early.append((asker, context))

    def release(self) -> list[tuple[int, Any]]:
        """Those that were held."""
        early, self.early = self.early, []
        return early

    def confirm(self, asker: int, context: Any, index: int) -> None:
        """A read of what is committed up to `index`: the next round of heartbeats is to confirm it."""
        self.confirming.append(PendingRead(self.round + 1, index, asker, context))

    def answered(self, site: int, number: int) -> None:
        """A follower has answered a heartbeat of that round."""
        self._answered[site] = max(self._answered.get(site, 0), number)

    def confirmed(self, voters: Sequence[int]) -> list[PendingRead]:
        """Take out those that a majority has confirmed."""
        reached = agreed(voters, self._round_answered)
        found: list[PendingRead] = []
        while self.confirming and self.confirming[0].round <= reached:
            found.append(self.confirming.pop(0))
        return found

    def _round_answered(self, site: int) -> int:
        return self.round if site == self._site else self._answered.get(site, 0)

    # ---- a follower's ---------------------------------------------------------------------------------------------

    def ask(self, context: Any) -> int:
        """A new attempt, with an id that no other has (etcd #20418)."""
        self._attempt += 1
        self._asked[self._attempt] = context
        return self._attempt

    def asked(self, attempt: int) -> bool:
        return attempt in self._asked

    def settle(self, attempt: int) -> Any:
        """Its context; it is answered."""
        return self._asked.pop(attempt)
