"""What a site is in a term: the roles, and the transitions between them."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Role(Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Transition(NamedTuple):
    """A change of role, term or leader, and why."""

    role: Role
    term: int
    leader: int
    reason: str


class NotLeader(Exception):
    """Only the leader can do this, or it is about to hand over its leadership."""
