"""What is kept of decisions to skip a statement."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from mysqlraft.binlog.place import Place
from mysqlraft.skips import FILE, Skips


def test_decisions_are_kept(tmp_path: Path) -> None:
    skips = Skips(tmp_path)
    assert skips.indices == []
    first = skips.add(7, "it is there already", "ann@tokyo")
    skips.add(9, "raced", "bob@tokyo")
    assert skips.indices == Skips(tmp_path).indices == [7, 9]
    assert first.at in (tmp_path / FILE).read_text()
    assert "ann@tokyo" in (tmp_path / FILE).read_text()
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_decision_that_may_not_last_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is in its place when the directory's sync fails: the next decision must not drop it."""
    skips = Skips(tmp_path)
    sync = os.fsync

    def failing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output"):
        skips.add(7, "it is there already", "ann@tokyo")
    monkeypatch.undo()
    skips.add(9, "raced", "bob@tokyo")
    assert skips.indices == Skips(tmp_path).indices == [7, 9]


def test_own_transactions_are_kept_beside_statements(tmp_path: Path) -> None:
    skips = Skips(tmp_path)
    place = Place("binlog.000003", 4711, "1-1732793530", "0-1-7")
    skips.add(7, "raced", "bob@tokyo")
    made = skips.add_captured(place, "logged as a statement", "ann@tokyo")
    assert skips.add_captured(place, "once more", "ann@tokyo").rows == made.rows
    assert made.rows == str(tmp_path / "skipped" / "binlog.000003-4711-1-1732793530.jsonl")
    read = Skips(tmp_path)
    assert read.indices == [7]
    assert read.lists == ([7], [["binlog.000003", 4711, "1-1732793530", "0-1-7", made.rows]])


@pytest.mark.parametrize("text", ["", "[7]", '[{"index": 7}]', "{", "[" * 100_000])
def test_a_damaged_file(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match="is damaged"):
        Skips(tmp_path)
