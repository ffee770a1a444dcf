"""What a majority of voters has agreed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum


class Vote(Enum):
    PENDING = 0
    WON = 1
    LOST = 2


def majority(count: int) -> int:
    """How many of `count` voters are a majority."""
    return count // 2 + 1


def agreed(voters: Sequence[int], acknowledged: Callable[[int], int]) -> int:
    """The greatest value that a majority of voters has reached."""
    return sorted([acknowledged(voter) for voter in voters])[len(voters) - majority(len(voters))]


def tally(voters: Sequence[int], votes: Mapping[int, bool], unanimous: bool = False) -> Vote:
    """The outcome of an election as far as the votes tell it, won by a majority or only if it is `unanimous`. Votes of
    others than voters do not count."""
    needed = len(voters) if unanimous else majority(len(voters))
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    refused = sum(1 for voter in voters if votes.get(voter) is False)
    if granted >= needed:
        return Vote.WON
    if refused > len(voters) - needed:
        return Vote.LOST
    return Vote.PENDING
