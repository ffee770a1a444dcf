"""Writing again never goes back: what is left out when a site writes one of its own units once more.

A unit that its origin has to write again (`certify`) is older than what the application has committed since. Written
in full it would take rows back to old values for a moment, and an application that reads one, adds to it and commits
would have lost an increment for good. Flags may be over-approximate; what is written may not be. So, of a unit that is
written again, with *later* meaning by local transactions that come after it in the log:

- a row is left as it is if no key of it is contested: no other site has written one of them since, nor has this one,
  writing again. What is written again may meet the unit's rows that follow, so its keys count as contested for them;
- the deletion or putting of a row is left out if the row's primary key was written later;
- a put is left out, and its row removed, if another row holds one of its unique values and the last image that was
  written later gives it to that row: the later unit will put things so in its place in the log;
- any other holder of a unique value is deleted, written later or not: its unit is re-asserted and restores it.

Rows of own units may lack columns that were added meanwhile. Then a row counts as written later only if nothing can be
lost there (`careful_lane`, `tests/replication/test_added_columns_model.py`).

Too small an idea of what is later makes a row go back for a moment; too large a one makes sites diverge. So only equal
primary keys count, never hashes, and in doubt the row is written. The same rule serves for units of other sites that
meet what is pending here. ``tests/replication/test_own_writes_model.py`` runs random histories of applications that
read and then write against this module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K")
"""A primary key as it is stored."""


@dataclass(slots=True)
class Stored(Generic[K]):
    """The stored rows that a row of a change meets; they are locked.

    ``before``, ``same``: under the primary key of the before image, of the after image. ``holders``: those that hold a
    value of a secondary unique key of the after image, as (number of the key, primary key).
    """

    before: K | None = None
    same: K | None = None
    holders: list[tuple[int, K]] = field(default_factory=list)

    def all(self) -> set[K]:
        """Their primary keys."""
        return {key for key in (self.before, self.same, *(holder for _, holder in self.holders)) if key is not None}


@dataclass(slots=True)
class Operations(Generic[K]):
    """``gone``: the rows to delete first. ``put``: whether the after image is written then, in place of ``start`` if
    that row is there."""

    gone: list[K]
    put: bool
    start: K | None = None


def operations(
    stored: Stored[K],
    *,
    puts: bool,
    before_later: bool = False,
    after_later: bool = False,
    given_later: Callable[[K, int], bool] = lambda key, unique: False,
) -> Operations[K]:
    """What makes delete(before), write(after) of a row, with what is left out of it. ``puts``: there is an after image.

    ``before_later``, ``after_later``: the primary key of that image was written later. ``given_later(key, unique)``:
    the last image that was written later of the row ``key`` has the after image's value of unique key ``unique``.
    """
    before = None if before_later else stored.before
    gone: list[K] = []
    taken = False
    for holder in dict.fromkeys(holder for _, holder in stored.holders):
        if holder in (stored.same, before):
            continue  # the row itself, before or after its primary key changes, gives way to nothing
        if any(given_later(holder, unique) for unique, key in stored.holders if key == holder):
            taken = True
        else:
            gone.append(holder)
    moved = before if before != stored.same else None
    if not puts or after_later:
        # Also if it is `same` to the server under another spelling: what comes later does not know it by this one.
        return Operations(gone + ([before] if before is not None else []), False)
    if taken:
        return Operations(gone + [key for key in (moved, stored.same) if key is not None], False)
    if moved is None:
        return Operations(gone, True, stored.same)
    # The row under the before image's key becomes the new one: it keeps the columns that the images may lack.
    return Operations(gone + ([stored.same] if stored.same is not None else []), True, moved)
