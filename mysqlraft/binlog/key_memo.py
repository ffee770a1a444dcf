"""The keys of tables that a stream knew when it ended, for the next one.

A binlog does not name unique keys. The server is asked for them, and its answer holds for rows that were written before
only if no statement on their table lies in between. To find that out, all that is left to be read has to be looked
through first. Of a table that the stream before has met, a memo says it at once: from some place up to where that one
ended there was no statement, and the next stream reads itself whatever comes after.

It is a fact about files of a binlog, and true as long as the server has that very file. Nothing depends on a memo:
without one the statements ahead are looked for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgpack
from xxhash import xxh3_64_digest

from mysqlraft.binlog.dump import DumpConnection, file_identity
from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.keys import KeyDefinition, KeyPart
from mysqlraft.binlog.position import StreamPosition, file_number

log = logging.getLogger(__name__)

FILE = "row-keys"
"""In ``data_dir``."""
VERSION = 1
_CHECKSUM = 8

Since = tuple[float, int]
"""A place: the file's number and the offset."""


@dataclass(frozen=True, slots=True)
class KeyMemo:
    """``tables``: schema and table -> since when its keys have been these. ``file``, ``offset``: up to where that is
    known. ``identity``: of this file, as in `StreamPosition`."""

    file: str
    offset: int
    identity: str
    tables: dict[tuple[str, str], tuple[Since, Sequence[KeyDefinition]]]

    def serves(self, position: StreamPosition, open_dump: Callable[[], DumpConnection]) -> bool:
        """Whether a stream that begins at the position, which the server has, reads every statement that the memo does
        not know. Raises ConnectionLost, and as ``open_dump`` does."""
        if (file_number(position.file), position.offset) > (file_number(self.file), self.offset):
            return False
        if position.identity and position.done[0] == self.file:
            return position.identity == self.identity
        try:
            return file_identity(open_dump, self.file) == self.identity
        except BinlogError:
            return False  # it has no such file

    def write(self, path: Path) -> None:
        """A disk that takes no file is no reason to complain: the next stream does without."""
        tables = [
            (
                *name,
                *since,
                [(key.name, [(part.column, part.prefix) for part in key.parts], key.refusal) for key in keys],
            )
            for name, (since, keys) in self.tables.items()
        ]
        content = (VERSION, self.file, self.offset, self.identity, tables)
        body: bytes = msgpack.packb(content, unicode_errors="surrogateescape")
        partial = path.with_name(f"{path.name}.new")
        try:
            partial.write_bytes(xxh3_64_digest(body) + body)
            os.replace(partial, path)
        except OSError as error:
            log.info("what is known of row keys is not kept: %s", error)


def read(path: Path) -> KeyMemo | None:
    """None: there is none, or it is damaged, or another version's."""
    try:
        data = path.read_bytes()
        if xxh3_64_digest(data[_CHECKSUM:]) != data[:_CHECKSUM]:
            return None
        version, *content = msgpack.unpackb(data[_CHECKSUM:], unicode_errors="surrogateescape")
        if version != VERSION:
            return None
        file, offset, identity, tables = content
        return KeyMemo(
            file,
            offset,
            identity,
            {
                (schema, table): (
                    (number, at),
                    [
                        KeyDefinition(name, tuple([KeyPart(*part) for part in parts]), refusal)
                        for name, parts, refusal in keys
                    ],
                )
                for schema, table, number, at, keys in tables
            },
        )
    except (OSError, ValueError, TypeError):
        return None
