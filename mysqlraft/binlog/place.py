"""Which transaction of the binlog it is that capture has stopped at, or that is left out."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from mysqlraft.binlog.errors import BinlogError, BinlogIncomplete


@dataclass(frozen=True, slots=True)
class Place:
    """Where one transaction begins. ``identity``: of its file (`mysqlraft.binlog.dump.identity`), which tells it from
    another file of the same name. ``gtid``: its GTID as the server writes it, "" if it has none.
    """

    file: str
    offset: int
    identity: str
    gtid: str

    def __str__(self) -> str:
        return self.gtid or f"{self.file}:{self.offset}"

    def is_named(self, text: str) -> bool:
        """Whether somebody who says this means it: its GTID, or file and offset."""
        return text.strip().lower() in (self.gtid.lower(), f"{self.file}:{self.offset}".lower()) and bool(text.strip())


class TransactionStops(BinlogError):
    """It is the transaction at ``place`` that cannot be carried."""

    def __init__(self, why: str, place: Place) -> None:
        super().__init__(why)
        self.place = place


class UnfinishedUnit(BinlogIncomplete):
    """The transaction at ``place`` never committed, and parts of it have left: the server crashed while it wrote it, or
    it was rolled back in the binlog."""

    def __init__(self, how: str, place: Place) -> None:
        super().__init__(f"{how} transaction {place}, of which the first parts had left")
        self.place = place


def gtid_text(gtid: tuple[Any, ...] | None) -> str:
    """A transaction's GTID as its server writes it: (source, tag, number), or on MariaDB (domain, server, number)."""
    if not gtid:
        return ""
    source, middle, number = gtid
    if isinstance(source, bytes):
        return f"{uuid.UUID(bytes=source)}:{middle + ':' if middle else ''}{number}"
    return f"{source}-{middle}-{number}"
