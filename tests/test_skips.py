"""What is kept of decisions to skip a statement."""

from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.mark.parametrize("text", ["", "[7]", '[{"index": 7}]', "{"])
def test_a_damaged_file(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match="is damaged"):
        Skips(tmp_path)
