"""The demo's table, on a terminal and in a pipe."""

from __future__ import annotations

import io

import pytest

from mysqlraft.sandbox.board import Board, SiteRow

ROWS = [
    SiteRow("tokyo", "leader", 12345, 40.2, 9876, 0.04, 7, "ok"),
    SiteRow("oregon", "-", 7, 0.0, None, None, None, "no answer"),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_table_redrawn_in_place() -> None:
    out = Terminal()
    shown = Board(out)
    shown.draw(ROWS)
    first = out.getvalue()
    shown.draw(ROWS)
    assert "\x1b" not in first
    lines = first.splitlines()
    assert lines[1].split() == ["site", "role", "writes", "tx/s", "applied", "lag", "s", "conflicts", "state"]
    assert lines[2].split() == ["tokyo", "leader", "12,345", "40", "9,876", "0.0", "7", "ok"]
    assert lines[3].split() == ["oregon", "-", "7", "0", "-", "-", "-", "no", "answer"]
    # The second table begins where the first one did.
    assert out.getvalue().removeprefix(first).startswith(f"\x1b[{len(lines)}F\x1b[J")
    shown.say("something happened")
    before = out.getvalue()
    shown.draw(ROWS)
    assert "\x1b" not in out.getvalue().removeprefix(before), "a step is never overwritten"


def test_a_pipe_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("mysqlraft.sandbox.board.time.monotonic", lambda: now)
    out = io.StringIO()
    shown = Board(out)
    for _ in range(50):
        shown.draw(ROWS)
        now += 0.1
    lines = out.getvalue().splitlines()
    assert len(lines) == 3, "every two seconds"
    assert "12,352 writes (40/s)" in lines[0]
    assert "worst lag 0.0 s (tokyo)" in lines[0]
    assert "leader tokyo" in lines[0]
    assert lines[0].endswith("oregon: no answer")
    shown.draw(ROWS, final=True)
    assert "site" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_nobody_answers() -> None:
    out = io.StringIO()
    Board(out).draw([SiteRow("tokyo", "-", 0, 0.0, None, None, None, "no answer")])
    assert "leader none" in out.getvalue()
