"""Which forwarded proposals count.

A site's proposals may reach the log more than once (a resend after a change of leader) and, after a lost message,
with a gap. Every consumer of the log applies the same rule to the same entries, so all agree on which count: a
proposal counts iff it is the next of its origin's current session, or the first of a greater one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_VOID = (1 << 64) - 1
"""The sequence of a session that has ended: none comes after it."""


class SessionTable:
    """Per origin the current session and the last sequence accepted in it.

    Accepted proposals of one origin and session have the sequences 1, 2, 3, ... without gap or repetition, and no
    proposal of a session counts after one of a greater session has.
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: dict[int, tuple[int, int]] = {}

    def accept(self, origin: int, session: int, sequence: int) -> bool:
        """Whether the proposal counts. If so, it is now the origin's last."""
        current, last = self._last.get(origin, (0, 0))
        if session == current:
            if sequence != last + 1:
                return False
        elif session < current or sequence != 1:
            return False
        self._last[origin] = (session, sequence)
        return True

    def void(self, origin: int) -> None:
        """No further proposal of the origin's current session counts."""
        self._last[origin] = (self._last.get(origin, (0, 0))[0], _VOID)

    def last(self, origin: int) -> tuple[int, int]:
        """(session, sequence) of the origin's last accepted proposal, (0, 0) if there is none. A void session has the
        greatest sequence that there is."""
        return self._last.get(origin, (0, 0))

    def __iter__(self) -> Iterator[int]:
        return iter(self._last)

    def to_dict(self) -> dict[int, tuple[int, int]]:
        """For a snapshot: origin -> (session, sequence)."""
        return dict(self._last)

    @classmethod
    def from_dict(cls, last: Mapping[int, tuple[int, int]]) -> SessionTable:
        table = cls()
        table._last = {int(origin): (int(pair[0]), int(pair[1])) for origin, pair in last.items()}
        return table
