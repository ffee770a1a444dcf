"""Rows that are too large for one entry: their images travel in pieces.

A piece is a part of its unit with nothing else in it, and never the last one. The pieces of a row follow each other;
the row's keys are those of the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from mysqlraft.replication.entry import Change, ChangeKind, Payload, PayloadError

_Row = tuple[bytes, ChangeKind, bytes, int, int]


def cut(change: Change, size: int) -> Iterator[Change]:
    """A change of one row in pieces of so many bytes; the change itself if it has no more."""
    images = memoryview(change.images)
    count = max(1, -(-len(images) // size))
    for number in range(count):
        yield replace(change, images=bytes(images[number * size : (number + 1) * size]), piece=number, pieces=count)


class PieceOrder:
    """Checks that pieces follow each other as they have to. Feed it every part of a unit."""

    def __init__(self) -> None:
        self._next: _Row | None = None

    def follow(self, payload: Payload) -> None:
        """Raises PayloadError: this part cannot be the next one."""
        change = _piece(payload)
        expected, self._next = self._next, None
        if expected is None:
            if change is not None and change.piece:
                raise PayloadError("a piece of a row whose first piece is missing")
        elif change is None or _row(payload, change) != expected:
            raise PayloadError("the next piece of a row is missing")
        if change is not None and change.piece < change.pieces - 1:
            table, kind, layout, piece, pieces = _row(payload, change)
            self._next = table, kind, layout, piece + 1, pieces


def joined(payloads: Iterable[Payload]) -> Iterator[Payload]:
    """The parts of a unit with each row in the part of its last piece, and none in those of its other pieces. If the
    first part is no first piece, what begins with it is left as it is."""
    images: list[bytes] = []
    for payload in payloads:
        change = _piece(payload)
        if change is None or len(images) != change.piece:
            yield payload
            continue
        images.append(change.images)
        (unit,) = payload.units
        if change.piece < change.pieces - 1:
            yield replace(payload, units=[replace(unit, changes=[])])
            continue
        whole = replace(change, images=b"".join(images), piece=0, pieces=1)
        images.clear()
        del change
        yield replace(payload, units=[replace(unit, changes=[whole])])
        del whole


def _piece(payload: Payload) -> Change | None:
    """The piece that the part is, if it is one."""
    if len(payload.units) == 1 and len(payload.units[0].changes) == 1 and payload.units[0].changes[0].pieces > 1:
        return payload.units[0].changes[0]
    return None


def _row(payload: Payload, change: Change) -> _Row:
    return payload.tables[change.table], change.kind, change.layout, change.piece, change.pieces
