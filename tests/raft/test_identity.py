"""Who holds a site's place: restarts, half-open connections, and two daemons with one identity."""

from __future__ import annotations

from mysqlraft.raft.identity import CHALLENGERS, PROOF_SECONDS, Identities, Rival

A, B, C = 11, 12, 13
"""Incarnations of site 1."""


def test_a_place_that_is_free_is_taken_and_kept() -> None:
    identities = Identities()
    assert identities.claim(1, A, "a:1", {}, 0) is None
    assert identities.claim(1, A, "a:2", {A: 5.0}, 5) is None, "its other connections, and the ones after those"
    assert identities.claim(2, B, "b:1", {}, 5) is None, "another site's"


def test_a_restarted_daemon_takes_the_place_at_once() -> None:
    identities = Identities()
    identities.claim(1, A, "a:1", {}, 0)
    assert identities.claim(1, B, "a:2", {}, 100) is None
    assert identities.claim(1, A, "a:1", {B: 101.0}, 102) == Rival("a:2", 2, False), "it has the place now"


def test_what_is_left_of_a_daemon_is_no_proof() -> None:
    identities = Identities()
    identities.claim(1, A, "a:1", {}, 0)
    last = 50.0
    for now in (50.5, 51.0, 53.0, 59.0):
        assert identities.claim(1, B, "b:1", {A: last}, now) == Rival("a:1", now, False)
    assert identities.claim(1, B, "b:1", {}, 60) is None, "the caller has closed it"


def test_two_that_are_alive_are_told_apart() -> None:
    identities = Identities()
    identities.claim(1, A, "a:1", {}, 0)
    first = 50.0
    assert identities.claim(1, B, "b:1", {A: first}, first) == Rival("a:1", 50, False)
    late = first + PROOF_SECONDS / 2
    assert identities.claim(1, B, "b:1", {A: late}, 52) == Rival("a:1", 52, False), "it may have been on its way"
    assert identities.claim(1, B, "b:1", {A: 52.0}, 53) == Rival("a:1", 53, True)
    assert identities.claim(1, C, "c:1", {A: 53.0}, 53) == Rival("a:1", 53, False), (
        "a third one is asked to prove it anew"
    )


def test_how_long_it_has_had_the_place_outlives_its_connections() -> None:
    identities = Identities()
    identities.claim(1, A, "a:1", {}, 0)
    identities.claim(1, A, "a:2", {}, 90)  # after a cut
    assert identities.claim(1, B, "b:1", {A: 95.0}, 100) == Rival("a:2", 100, False)


def test_challengers_are_forgotten_before_there_are_too_many() -> None:
    identities = Identities()
    identities.claim(1, A, "a:1", {}, 0)
    for incarnation in range(100, 100 + 3 * CHALLENGERS):
        identities.claim(1, incarnation, "b:1", {A: 1.0}, 1)
    assert identities.claim(1, 100, "b:1", {A: 50.0}, 50) == Rival("a:1", 50, False)
    assert identities.claim(1, 100 + 3 * CHALLENGERS - 1, "b:1", {A: 50.0}, 50) == Rival("a:1", 50, True)
