"""The row keys of local transactions that were captured and are not back from the log.

A row of another site that comes before such a transaction in the log will be overwritten by it. Apply asks here which
units meet one, to leave such rows out (`look_ahead`): their application never sees its own row give way and come back.
The answer decides about the way only, never about what rows end up in: keys are hashes, and not all that is pending has
been captured.
"""

from __future__ import annotations

from array import array
from collections import deque

Stamp = tuple[int, int]
"""Session and sequence of a proposal: later ones are greater."""

_CLEAN_AT = 100_000


class PendingRows:
    """Fed by the thread that captures (`proposed`), asked by the one that applies (everything else)."""

    def __init__(self) -> None:
        self._new: deque[tuple[Stamp, bytes]] = deque()
        self._last: dict[int, Stamp] = {}
        """Key -> the last proposal that has it, of those taken out of `_new`."""
        self._back: Stamp = (0, 0)
        self._clean_at = _CLEAN_AT

    def proposed(self, session: int, sequence: int, keys: bytes) -> None:
        """A unit with these keys, packed, is about to be proposed."""
        self._new.append(((session, sequence), keys))

    def returned(self, session: int, sequence: int) -> None:
        """This proposal, and all before it, are back from the log, or will never be."""
        back = self._back = max(self._back, (session, sequence))
        while self._new and self._new[0][0] <= back:
            self._new.popleft()

    def meets(self, keys: bytes) -> bool:
        """Whether one of these keys is pending."""
        last, back = self._last, self._back
        while self._new:
            stamp, packed = self._new.popleft()
            last.update(dict.fromkeys(_unpacked(packed), stamp))
        if not last:
            return False
        if len(last) > self._clean_at:
            last = self._last = {key: stamp for key, stamp in last.items() if stamp > back}
            self._clean_at = max(_CLEAN_AT, 2 * len(last))
        return any(stamp is not None and stamp > back for stamp in map(last.get, _unpacked(keys)))


def _unpacked(keys: bytes) -> array[int]:
    hashes = array("Q")
    hashes.frombytes(keys)
    return hashes
