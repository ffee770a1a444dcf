"""What actions take and answer, with the cluster replaced."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from mysqlraft.admin.actions import actions
from mysqlraft.admin.http import Page
from mysqlraft.raft.operations import NotDone, Outcome, Request


class Site:
    """A site that has applied up to 10; what it is asked for is noted."""

    def __init__(self, outcome: Outcome | None = None) -> None:
        self.outcome = outcome
        self.performed: list[tuple[Request, float]] = []
        self.committed = 10
        self.leaderless = False
        self.ended = False
        """What applies here does not run."""

    async def perform(self, request: Request, seconds: float) -> dict[str, Any]:
        self.performed.append((request, seconds))
        if self.outcome is not None:
            raise NotDone(self.outcome, "because")
        return {"done": True}

    async def read_index(self) -> int:
        if self.leaderless:
            await asyncio.Event().wait()
        return self.committed

    async def wait_applied(self, index: int) -> None:
        if index > 10 or self.ended:
            await asyncio.Event().wait()

    def applied(self) -> int | None:
        return 10

    async def skip(self, index: int, by: str) -> str:
        if index != 11:
            raise NotDone(Outcome.REFUSED, "not there")
        return f"asked by {by}"

    async def skip_captured(self, wanted: str, by: str) -> tuple[str, str, str]:
        if wanted != "0-1-7":
            raise NotDone(Outcome.REFUSED, "not there")
        return wanted, f"asked by {by}", "/data/skipped/7.jsonl"

    async def wait_skipped(self, rows: str) -> None:
        if self.ended:
            await asyncio.Event().wait()

    def state(self) -> str:
        return "capture stopped: disk full"


def ask(site: Site, path: str, /, **wish: Any) -> tuple[int, dict[str, Any]]:
    async def answer() -> Page:
        return await actions(site.perform, site)[path](wish)

    page = asyncio.run(answer())
    return int(page.status), json.loads(page.content)


def test_requests_reach_the_cluster() -> None:
    site = Site()
    assert ask(site, "/members", change="promote", site="oslo", force=True, timeout=3) == (200, {"done": True})
    assert ask(site, "/transfer") == (200, {"done": True})
    assert ask(site, "/transfer", site=3)[0] == 200
    assert site.performed == [
        (Request("promote", "oslo", force=True), 3.0),
        (Request("transfer"), 10.0),
        (Request("transfer", 3), 10.0),
    ]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [(Outcome.INVALID, 400), (Outcome.REFUSED, 409), (Outcome.NO_LEADER, 503), (Outcome.UNKNOWN, 504)],
)
def test_every_outcome_has_its_status(outcome: Outcome, status: int) -> None:
    assert ask(Site(outcome), "/transfer") == (status, {"error": "because", "outcome": outcome.value})


def test_barrier_and_wait() -> None:
    site = Site()
    assert ask(site, "/barrier")[1]["index"] == 10
    assert ask(site, "/wait", index=9)[1]["index"] == 9
    site.committed = 11
    late = (
        504,
        {"error": "not applied within 0.05 s: this site has applied up to 10, not to 11", "outcome": "unknown"},
    )
    assert ask(site, "/barrier", timeout=0.05) == late
    assert ask(site, "/wait", index=11, timeout=0.05) == late
    site.ended = True
    status, answer = ask(site, "/wait", index=3, timeout=0.05)
    assert (status, answer["outcome"]) == (504, "unknown")
    assert answer["error"].startswith("no answer within 0.05 s from what applies here")
    site.leaderless = True
    status, answer = ask(site, "/barrier", timeout=0.05)
    assert (status, answer["outcome"]) == (503, "no leader")
    assert "no leader has answered within 0.05 s" in answer["error"]


@pytest.mark.parametrize(
    ("path", "wish", "reason"),
    [
        ("/members", {}, "None is not a change"),
        ("/members", {"change": "transfer"}, "'transfer' is not a change"),
        ("/members", {"change": "promote", "site": 1, "colour": "red"}, "colour"),
        ("/members", {"change": "promote", "site": 1, "expected_index": 1 << 63}, "expected_index"),
        ("/members", {"change": "promote", "site": "o\nslo"}, "site"),
        ("/members", {"change": "promote", "site": "\ud800"}, "site"),
        ("/transfer", {"site": [1]}, "site"),
        ("/transfer", {"site": 0}, "site"),
        ("/transfer", {"site": ""}, "site"),
        ("/transfer", {"timeout": "soon"}, "timeout"),
        ("/barrier", {"timeout": 0}, "timeout"),
        ("/barrier", {"timeout": True}, "timeout"),
        ("/barrier", {"timeout": 601}, "timeout"),
        ("/barrier", {"index": 3}, "index"),
        ("/wait", {}, "index"),
        ("/wait", {"index": -1}, "index"),
        ("/wait", {"index": 1 << 63}, "is not a log index"),
        ("/wait", {"index": 1, "site": 1}, "site"),
    ],
)
def test_what_is_no_request(path: str, wish: dict[str, Any], reason: str) -> None:
    site = Site()
    status, answer = ask(site, path, **wish)
    assert status == 400
    assert reason in answer["error"]
    assert not site.performed


def test_skipping_a_statement() -> None:
    site = Site()
    assert ask(site, "/skip", index=11, by="ann@tokyo") == (200, {"index": 11, "reason": "asked by ann@tokyo"})
    assert ask(site, "/skip", index=12, by="ann@tokyo")[0] == 409
    for wrong in ({"index": 11}, {"index": 11, "by": ""}, {"by": "ann"}, {"index": "11", "by": "ann"}):
        assert ask(site, "/skip", **wrong)[0] == 400


def test_skipping_an_own_transaction() -> None:
    """The answer waits until the transaction is in its file."""
    site = Site()
    wanted = {"captured": "0-1-7", "by": "ann@tokyo"}
    assert ask(site, "/skip", **wanted) == (
        200,
        {"captured": "0-1-7", "reason": "asked by ann@tokyo", "rows": "/data/skipped/7.jsonl"},
    )
    assert ask(site, "/skip", captured="0-1-8", by="ann@tokyo")[0] == 409
    for wrong in ({"captured": "0-1-7"}, {"captured": 7, "by": "ann"}, {"captured": "", "by": "ann"}):
        assert ask(site, "/skip", **wrong)[0] == 400
    assert ask(site, "/skip", index=11, **wanted)[0] == 400
    site.ended = True
    status, answer = ask(site, "/skip", timeout=0.01, **wanted)
    assert status == 504
    assert "/data/skipped/7.jsonl is not written within 0.01 s" in answer["error"]
    assert "this site is capture stopped: disk full" in answer["error"]
