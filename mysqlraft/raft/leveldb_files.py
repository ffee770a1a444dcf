"""A look at LevelDB's files before LevelDB itself is let loose on them.

It takes a directory without CURRENT for a new one, whatever tables are in it, and does not miss the log that its
manifest names; and then it deletes the files that it does not know. So a site that lost one of these, or the end of its
manifest, would come up with less than it has acknowledged, or with nothing, and no error. None of it comes of a crash:
LevelDB makes a log, syncs the directory, and only then says in the manifest which one it is.

The format is that of LevelDB's doc/log_format.md and db/version_edit.cc.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 32768
_HEADER = struct.Struct("<IHB")
"""Of a fragment: checksum, length, type."""
_FULL, _FIRST, _, _LAST = range(1, 5)
_COMPARATOR, _LOG_NUMBER, _NEXT_FILE, _LAST_SEQUENCE, _COMPACT_POINTER, _DELETED_FILE, _NEW_FILE = range(1, 8)
_PREVIOUS_LOG = 9
_SHAPES = {
    _COMPARATOR: "s", _LOG_NUMBER: "n", _NEXT_FILE: "n", _LAST_SEQUENCE: "n", _COMPACT_POINTER: "ns",
    _DELETED_FILE: "nn", _NEW_FILE: "nnnss", _PREVIOUS_LOG: "n",
}  # fmt: skip
"""Of what follows a tag: numbers (varints) and strings (a varint, and as many bytes)."""


def missing_file(database: Path) -> str | None:
    """The name of a file that has to be there and is not, though LevelDB would go on without; None if there is none.

    What LevelDB itself does not go on without, or with, is left to it. Raises OSError.
    """
    if not database.is_dir():
        return None
    names = {path.name for path in database.iterdir()}
    if "CURRENT" not in names:
        return "CURRENT" if any(name.endswith((".log", ".ldb", ".sst")) for name in names) else None
    manifest = database / (database / "CURRENT").read_text(errors="replace").strip()
    if not manifest.is_file():
        return None
    try:
        number = _log_number(manifest.read_bytes())
    except (IndexError, KeyError):
        return None
    log = f"{number:06}.log"
    return log if number and log not in names else None


def _log_number(manifest: bytes) -> int:
    """Of the log whose records are in no table yet; 0 before there is one."""
    number = 0
    for record in _records(manifest):
        at = 0
        while at < len(record):
            tag, at = _varint(record, at)
            for field in _SHAPES[tag]:
                value, at = _varint(record, at)
                if field == "s":
                    at += value
                elif tag == _LOG_NUMBER:
                    number = value
    return number


def _records(content: bytes) -> Iterator[bytes]:
    """Without a last one that is not whole: it was being written when the machine went down."""
    record = b""
    at = 0
    while at + _HEADER.size <= len(content):
        if _BLOCK - at % _BLOCK < _HEADER.size:
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = _HEADER.unpack_from(content, at)
        at += _HEADER.size
        if at + length > len(content):
            return
        record = content[at : at + length] if kind in (_FULL, _FIRST) else record + content[at : at + length]
        at += length
        if kind in (_FULL, _LAST):
            yield record


def _varint(record: bytes, at: int) -> tuple[int, int]:
    """The number, and where it ends."""
    value = shift = 0
    while True:
        byte = record[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
