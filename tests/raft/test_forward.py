"""Forwarding: in order, at least once, never with a gap; and the rule that makes it exactly once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mysqlraft.raft import SessionTable
from mysqlraft.raft.forward import MAX_PAYLOAD_BYTES, PROPOSAL_OVERHEAD, Forwarder, Intake
from mysqlraft.raft.messages import Forward, ForwardStatus

LEADER, ORIGIN, TERM = 1, 2, 5


def forwarder(window: int = 1 << 20, message: int = 1 << 20) -> Forwarder:
    made = Forwarder(ORIGIN, window, message, patience_ticks=10)
    made.follow(LEADER, TERM)
    return made


def sequences(messages: list[Forward]) -> list[int]:
    return [message.first_sequence + n for message in messages for n in range(len(message.payloads))]


def test_proposals_leave_at_once_in_order_and_in_one_message() -> None:
    ours = forwarder()
    for sequence in (1, 2, 3):
        ours.propose(7, sequence, b"%d" % sequence)
    (message,) = ours.take()
    assert message.payloads == (b"1", b"2", b"3")
    assert (message.to, message.term, message.session, message.first_sequence, message.start) == (1, 5, 7, 1, True)
    ours.propose(7, 4, b"4")
    (message,) = ours.take()
    assert (message.first_sequence, message.start) == (4, False)


def test_nothing_leaves_without_a_leader_and_all_leaves_when_there_is_one() -> None:
    ours = forwarder()
    ours.follow(0, TERM)
    ours.propose(1, 1, b"x")
    assert ours.take() == []
    ours.follow(3, TERM + 1)
    assert [message.to for message in ours.take()] == [3]


def test_a_new_leader_or_a_broken_connection_makes_it_start_again() -> None:
    ours = forwarder()
    for sequence in (1, 2, 3):
        ours.propose(1, sequence, b"x")
    ours.take()
    ours.committed(1, 1)
    ours.follow(3, TERM + 1)
    (message,) = ours.take()
    assert (message.first_sequence, message.start, len(message.payloads)) == (2, True, 2)
    ours.restart()
    assert sequences(ours.take()) == [2, 3]
    assert ours.take() == []


def test_no_commit_for_a_long_time_makes_it_start_again_with_growing_patience() -> None:
    ours = forwarder()
    ours.propose(1, 1, b"x")
    ours.take()
    waits: list[int] = []
    waited = 0
    while len(waits) < 3:
        ours.tick()
        waited += 1
        if ours.take():
            waits.append(waited)
            waited = 0
    assert waits == [10, 20, 40]


def test_outstanding_bytes_fall_as_proposals_commit() -> None:
    ours = forwarder()
    for sequence in (1, 2):
        ours.propose(1, sequence, b"x" * 100)
    assert ours.outstanding_bytes == 2 * (100 + PROPOSAL_OVERHEAD)
    ours.take()
    ours.committed(1, 2)  # there are no gaps: the one before is committed, too
    assert (ours.outstanding_bytes, len(ours)) == (0, 0)


def test_the_window_bounds_what_is_sent() -> None:
    ours = forwarder(window=2 * (100 + PROPOSAL_OVERHEAD), message=1)
    for sequence in range(1, 6):
        ours.propose(1, sequence, b"x" * 100)
    assert sequences(ours.take()) == [1, 2]
    ours.committed(1, 1)
    assert sequences(ours.take()) == [3]


def test_a_new_session_drops_what_is_left_of_the_old_one() -> None:
    ours = forwarder()
    ours.propose(1, 1, b"old")
    ours.take()
    ours.propose(2, 1, b"new")
    (message,) = ours.take()
    assert (message.session, message.payloads, message.start) == (2, (b"new",), True)
    assert len(ours) == 1
    with pytest.raises(ValueError, match="older"):
        ours.propose(1, 2, b"late")


def test_a_repetition_changes_nothing_and_a_gap_is_refused() -> None:
    ours = forwarder()
    ours.propose(1, 4, b"x")
    ours.propose(1, 4, b"x")
    assert len(ours) == 1
    with pytest.raises(ValueError, match="does not follow"):
        ours.propose(1, 6, b"x")


def test_a_payload_that_fits_into_no_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        forwarder().propose(1, 1, bytes(MAX_PAYLOAD_BYTES + 1))


def forward(first: int, count: int = 1, start: bool = False, session: int = 1, origin: int = ORIGIN) -> Forward:
    return Forward(LEADER, origin, TERM, session, first, start, (0,) * count, (b"x",) * count)


def taken(intake: Intake, message: Forward, last_index: int = 100) -> tuple[list[int], ForwardStatus | None]:
    proposals, status = intake.admit(message)
    if proposals:
        intake.taken(proposals, last_index)
    return [proposal.sequence for proposal in proposals], status


def test_intake_takes_what_continues_and_drops_what_repeats() -> None:
    intake = Intake(LEADER, TERM)
    assert taken(intake, forward(5, 2, start=True)) == ([5, 6], None)
    assert taken(intake, forward(7)) == ([7], None)
    assert taken(intake, forward(7)) == ([], None)
    assert taken(intake, forward(6, 4)) == ([8, 9], None)


def test_intake_asks_once_for_what_is_missing() -> None:
    intake = Intake(LEADER, TERM)
    taken(intake, forward(1, start=True))
    assert taken(intake, forward(3))[1] == ForwardStatus(ORIGIN, LEADER, TERM, 1, 2, 0)
    assert taken(intake, forward(4)) == ([], None)
    assert taken(intake, forward(2)) == ([2], None)


def test_intake_begins_only_with_a_start() -> None:
    """Else it would take what follows a lost message of the term before, and the log would have a gap."""
    intake = Intake(LEADER, TERM)
    assert taken(intake, forward(3)) == ([], ForwardStatus(ORIGIN, LEADER, TERM, 1, 0, 0))


def test_intake_tells_a_forwarder_that_began_anew_where_its_proposals_are() -> None:
    """The consensus process restarted; its proposals had committed before, so it will not see them pass again."""
    intake = Intake(LEADER, TERM)
    taken(intake, forward(1, 3, start=True), last_index=42)
    status = taken(intake, forward(1, 3, start=True))[1]
    assert status == ForwardStatus(ORIGIN, LEADER, TERM, 1, 4, 42)
    ours = forwarder()
    for sequence in (1, 2, 3):
        ours.propose(1, sequence, b"x")
    ours.take()
    assert status is not None
    ours.on_status(status, commit=41)
    assert len(ours) == 3
    ours.on_status(status, commit=42)
    assert len(ours) == 0


def test_intake_knows_sessions() -> None:
    intake = Intake(LEADER, TERM)
    taken(intake, forward(1, 3, start=True, session=4))
    assert taken(intake, forward(1, start=True, session=3)) == ([], None)
    assert taken(intake, forward(1, start=True, session=5)) == ([1], None)
    assert taken(intake, forward(4, session=4)) == ([], None)


def test_after_a_failed_transfer_those_who_were_refused_are_told() -> None:
    intake = Intake(LEADER, TERM)
    intake.refuse(forward(1))
    assert intake.refused() == [ForwardStatus(ORIGIN, LEADER, TERM, 1, 0, 0)]
    assert intake.refused() == []


def test_sessions_accept_rule() -> None:
    table = SessionTable()
    steps = [
        (1, 2, False),  # a session begins with 1
        (1, 1, True),
        (1, 1, False),  # repeated
        (1, 3, False),  # a gap
        (1, 2, True),
        (3, 2, False),
        (3, 1, True),
        (1, 3, False),  # of an older session
        (2, 1, False),
        (3, 2, True),
    ]
    assert [table.accept(9, session, sequence) for session, sequence, _ in steps] == [each[2] for each in steps]
    assert table.last(9) == (3, 2)
    assert SessionTable.from_dict(table.to_dict()).last(9) == (3, 2)
    assert list(table) == [9]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)), max_size=60))
def test_sessions_accepted_are_consecutive_whatever_arrives(arrivals: list[tuple[int, int, int]]) -> None:
    table = SessionTable()
    accepted: dict[int, list[tuple[int, int]]] = {}
    for origin, session, sequence in arrivals:
        if table.accept(origin, session, sequence):
            accepted.setdefault(origin, []).append((session, sequence))
        table = SessionTable.from_dict(table.to_dict())
    for pairs in accepted.values():
        assert pairs == sorted(pairs)
        for session in {session for session, _ in pairs}:
            of_session = [sequence for each, sequence in pairs if each == session]
            assert of_session == list(range(1, len(of_session) + 1))
