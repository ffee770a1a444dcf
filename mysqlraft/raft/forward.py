"""Proposals from any site to the leader: in order, at least once, never with a gap.

At the origin, the `Forwarder` keeps every proposal until it sees it committed in the log. When it knows a leader, it
sends what the window allows. It starts again with the first uncommitted one whenever what it sent may be lost: the
leader changed, the connection to it broke, the leader says that something is missing, or nothing has been committed
for a long time.

At the leader, the `Intake` takes an origin's proposals only if they continue what it took before in this term, or if
the origin says that everything before them is committed. So for every proposal in any log, the one before it in its
session is in that log too, and earlier. Hence a log never has a gap; what it can have are repetitions (the new leader
gets again what the old one had already replicated), and sessions.SessionTable drops them at every consumer alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from mysqlraft.raft.entry import payload_checksum
from mysqlraft.raft.messages import Forward, ForwardStatus, Proposal

NOBODY = 0
MAX_PAYLOAD_BYTES = 32 * 1024 * 1024
"""No proposal is larger: it has to fit into one frame, with room for others in the same buffers."""
PROPOSAL_OVERHEAD = 300
"""Bytes that a kept proposal takes beside its payload."""


class _Kept(NamedTuple):
    sequence: int
    payload: bytes
    checksum: int


class Forwarder:
    """The proposals of this site that are not yet committed.

    Invariant: `_sent` followed by `_waiting` are consecutive sequences of one session, ending with `_last`.
    """

    def __init__(
        self,
        site: int,
        window_bytes: int,
        message_bytes: int,
        patience_ticks: int,
    ) -> None:
        self._site = site
        self._window_bytes = window_bytes
        self._message_bytes = message_bytes
        self._patience_ticks = patience_ticks
        """Without any commit of ours for this long, start again; twice as long each time it did not help."""
        self.session = 0
        self._last = 0
        self._sent: deque[_Kept] = deque()
        self._waiting: deque[_Kept] = deque()
        self._sent_bytes = 0
        self.outstanding_bytes = 0
        """Bytes of all proposals that are not committed: the caller's measure for when to hold back."""
        self._leader = NOBODY
        self._term = 0
        self._start = True
        """The next Forward is the first to this leader (or the first again)."""
        self._silent_ticks = 0
        self._silence_allowed = patience_ticks

    def __len__(self) -> int:
        """Proposals not yet committed."""
        return len(self._sent) + len(self._waiting)

    @property
    def waiting_for_answer(self) -> bool:
        """Whether ticks count: what was sent and is not committed is sent again some time."""
        return bool(self._sent)

    def propose(self, session: int, sequence: int, payload: bytes) -> None:
        """Keep a proposal, to be taken into the log. A greater session drops what is left of an older one;
        the first sequence of a session (as far as this object knows it) may be any, all before it being committed;
        a sequence that was proposed before changes nothing.

        Raises ValueError for an older session, a sequence that leaves a gap, and a payload that is too large.
        """
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"a payload of {len(payload)} bytes; at most {MAX_PAYLOAD_BYTES} fit into one entry")
        if session < self.session:
            raise ValueError(f"session {session} is older than the current one, {self.session}")
        if session > self.session:
            self._drop_all()
            self.session = session
        elif sequence <= self._last:
            return
        elif sequence != self._last + 1:
            raise ValueError(f"sequence {sequence} of session {session} does not follow {self._last}")
        self._last = sequence
        self._waiting.append(_Kept(sequence, payload, payload_checksum(payload)))
        self.outstanding_bytes += len(payload) + PROPOSAL_OVERHEAD

    def follow(self, leader: int, term: int) -> None:
        """The leader is now this one, NOBODY if there is none."""
        if (leader, term) != (self._leader, self._term):
            self._leader, self._term = leader, term
            self.restart()

    def restart(self) -> None:
        """What was sent and is not committed may be lost: send it again, from the first on."""
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()
        self._sent_bytes = 0
        self._start = True
        self._silent_ticks = 0

    def committed(self, session: int, sequence: int) -> None:
        """This proposal of ours is committed, and with it all before it in its session (there are no gaps)."""
        if session != self.session:
            return
        while self._sent and self._sent[0].sequence <= sequence:
            size = len(self._sent.popleft().payload) + PROPOSAL_OVERHEAD
            self._sent_bytes -= size
            self.outstanding_bytes -= size
        while self._waiting and self._waiting[0].sequence <= sequence:
            self.outstanding_bytes -= len(self._waiting.popleft().payload) + PROPOSAL_OVERHEAD
        if not self:
            self._last = max(self._last, sequence)
        self._silent_ticks = 0
        self._silence_allowed = self._patience_ticks

    def on_status(self, status: ForwardStatus, commit: int) -> None:
        """The leader told what it has of our proposals."""
        if status.sender != self._leader or status.term != self._term or status.session != self.session:
            return
        if status.expected and status.index and status.index <= commit:
            # It is in the leader's log, in a place that is committed: so this one is, though we did not see it pass.
            self.committed(self.session, status.expected - 1)
        elif not status.index:
            self._rewind(status.expected)

    def tick(self) -> None:
        if not self._sent:
            self._silent_ticks = 0
            return
        self._silent_ticks += 1
        if self._silent_ticks >= self._silence_allowed:
            self._silence_allowed = min(2 * self._silence_allowed, 16 * self._patience_ticks)
            self.restart()

    def take(self) -> list[Forward]:
        """The messages to send to the leader now."""
        messages: list[Forward] = []
        if self._leader == NOBODY or not self._waiting:
            return messages
        while self._waiting and (self._sent_bytes < self._window_bytes or not self._sent):
            checksums: list[int] = []
            payloads: list[bytes] = []
            first = self._waiting[0].sequence
            size = 0
            while self._waiting and (not payloads or size + len(self._waiting[0].payload) <= self._message_bytes):
                kept = self._waiting.popleft()
                self._sent.append(kept)
                checksums.append(kept.checksum)
                payloads.append(kept.payload)
                size += len(kept.payload) + PROPOSAL_OVERHEAD
            self._sent_bytes += size
            messages.append(
                Forward(
                    self._leader, self._site, self._term, self.session, first, self._start,
                    tuple(checksums), tuple(payloads),
                )
            )  # fmt: skip
            self._start = False
        return messages

    def _rewind(self, sequence: int) -> None:
        """Go back to `sequence`, which the leader expects next; to the first if it has no idea or we no longer do."""
        first = self._sent[0].sequence if self._sent else 0
        if not first or not first < sequence <= self._sent[-1].sequence:
            self.restart()
            return
        while self._sent and self._sent[-1].sequence >= sequence:
            kept = self._sent.pop()
            self._sent_bytes -= len(kept.payload) + PROPOSAL_OVERHEAD
            self._waiting.appendleft(kept)

    def _drop_all(self) -> None:
        self._sent.clear()
        self._waiting.clear()
        self._sent_bytes = self.outstanding_bytes = 0
        self._start = True
        self._silent_ticks = 0


class _Taken(NamedTuple):
    session: int
    sequence: int
    index: int  # type: ignore[assignment]  # shadows tuple.index


class Intake:
    """The leader's side, for one term: what it has taken from each origin."""

    def __init__(self, site: int, term: int) -> None:
        self._site = site
        self.term = term
        self._taken: dict[int, _Taken] = {}
        self._asked: dict[int, tuple[int, int]] = {}
        """origin -> (session, sequence) that it was asked for: once, not for each message behind the missing one."""
        self._refused: dict[int, int] = {}
        """origin -> session of those who were refused while leadership was to be handed over."""

    def admit(self, forward: Forward) -> tuple[list[Proposal], ForwardStatus | None]:
        """Which of the proposals to append, and what to tell the origin if that is not simply all."""
        session, origin = forward.session, forward.sender
        first, count = forward.first_sequence, len(forward.payloads)
        taken = self._taken.get(origin)
        skip = 0
        if taken is not None and session < taken.session:
            return [], None
        if taken is not None and session == taken.session:
            if first > taken.sequence + 1 and not forward.start:
                return [], self._ask(origin, session, taken.sequence + 1)
            skip = max(0, min(count, taken.sequence + 1 - first))
            if skip == count:
                status = self._status(origin, session, taken.sequence + 1, taken.index) if forward.start else None
                return [], status
        elif not forward.start:
            return [], self._ask(origin, session, 0)
        return [
            Proposal(origin, session, first + position, forward.payloads[position], forward.checksums[position])
            for position in range(skip, count)
        ], None

    def taken(self, proposals: Sequence[Proposal], last_index: int) -> None:
        """They were appended, the last of them at `last_index`."""
        last = proposals[-1]
        self._taken[last.origin] = _Taken(last.session, last.sequence, last_index)
        self._asked.pop(last.origin, None)

    def refuse(self, forward: Forward) -> None:
        """Leadership is being handed over. If that fails, the origin has to be told to start again."""
        self._refused[forward.sender] = forward.session

    def refused(self) -> list[ForwardStatus]:
        """To be sent when proposals are accepted again."""
        statuses = [self._status(origin, session, 0, 0) for origin, session in self._refused.items()]
        self._refused.clear()
        return statuses

    def _ask(self, origin: int, session: int, expected: int) -> ForwardStatus | None:
        if self._asked.get(origin) == (session, expected):
            return None
        self._asked[origin] = (session, expected)
        return self._status(origin, session, expected, 0)

    def _status(self, origin: int, session: int, expected: int, index: int) -> ForwardStatus:
        return ForwardStatus(origin, self._site, self.term, session, expected, index)
