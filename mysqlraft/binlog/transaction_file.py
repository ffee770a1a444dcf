"""One transaction of the binlog in a file, before it is left out: for people, to bring back by hand what it did.

The file has one JSON object a line: first the transaction, then for each of its events the rows or the statement, as
far as they can be read, and the event itself, hexadecimal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mysqlraft.binlog import tablemap
from mysqlraft.binlog.compression import payload_events, unpack
from mysqlraft.binlog.display import row_json
from mysqlraft.binlog.dump import DumpConnection, LargeEvent, identity
from mysqlraft.binlog.errors import BinlogError, PositionLost
from mysqlraft.binlog.events import HEADER, EventType, query
from mysqlraft.binlog.keys import KeySource
from mysqlraft.binlog.place import Place
from mysqlraft.binlog.position import StreamPosition
from mysqlraft.binlog.rows import RowsError, columns_of, split
from mysqlraft.binlog.stream import ROWS_EVENTS, TransactionStream

_E = EventType


def write_transaction(dump: DumpConnection, place: Place, path: Path, source: KeySource) -> None:
    """Reads the transaction at ``place`` from a dump connection that has asked for nothing yet, and writes it to the
    file, which is there as a whole or not at all; for the daemon's account alone to read.

    Raises:
        PositionLost, ConnectionLost, BinlogError: as `DumpConnection.batch` does, or if it is another file now.
        OSError: the file cannot be written.
    """
    path.parent.mkdir(mode=0o700, exist_ok=True)
    partial = path.with_suffix(".partial")
    dump.start_at(place.file, place.offset)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        heading = {"transaction": str(place), "file": place.file, "offset": place.offset, "made": place.identity}
        print(json.dumps(heading), file=file)
        for line in _lines(_events(dump, place, source)):
            print(line, file=file)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _events(dump: DumpConnection, place: Place, source: KeySource) -> Iterator[bytes]:
    """The events of the transaction, those of a compressed one as they were before."""
    position = StreamPosition(place.file, place.offset, "", (place.file, place.offset), place.identity)
    stream = TransactionStream(source, lambda *_: False, mariadb=dump.mariadb, position=position, skip=[place])
    while True:
        for event in dump.batch():
            if isinstance(event, LargeEvent):
                yield from payload_events(event.chunks())
                return
            if event[4] == _E.TRANSACTION_PAYLOAD:
                yield from payload_events(iter((event[HEADER:],)))
                return
            if event[4] == _E.FORMAT_DESCRIPTION and identity(event) != place.identity:
                raise PositionLost(f"its {place.file} is another file than the one that was read")
            for _ in stream.read((event,)):
                pass
            if stream.inside or stream.counters.skipped:
                yield event
            if stream.counters.skipped:
                return


def _lines(events: Iterator[bytes]) -> Iterator[str]:
    tables: dict[bytes, tablemap.TableMap] = {}
    for event in events:
        kind = event[4]
        name = EventType(kind).name if kind in set(EventType) else str(kind)
        try:
            yield from _readable(event, name, tables)
        except (BinlogError, RowsError, tablemap.TableMapError, ValueError, LookupError) as error:
            yield json.dumps({"event": name, "unreadable": str(error)})
        yield json.dumps({"event": name, "raw": event.hex()})


def _readable(event: bytes, name: str, tables: dict[bytes, tablemap.TableMap]) -> Iterator[str]:
    kind = event[4]
    if kind == _E.TABLE_MAP:
        tables[event[HEADER : HEADER + 6]] = tablemap.parse(event[HEADER + 8 :])
    elif kind in (_E.QUERY, _E.MARIADB_QUERY_COMPRESSED):
        found = query(event[HEADER:])
        text = unpack(found.statement) if kind == _E.MARIADB_QUERY_COMPRESSED else found.statement
        yield _json({"event": name, "schema": found.schema, "statement": text.decode("utf-8", "backslashreplace")})
    elif kind in ROWS_EVENTS:
        row_kind, extra, compressed = ROWS_EVENTS[kind]
        table = tables[event[HEADER : HEADER + 6]]
        start = HEADER + 8 + (int.from_bytes(event[HEADER + 8 : HEADER + 10], "little") if extra else 0)
        count, at = tablemap.lenenc(event, start)
        middle = at + (count + 7) // 8 * (2 if row_kind == 1 else 1)
        layout, images = event[start:middle], event[middle:]
        if compressed:
            images = unpack(images)
        sides = columns_of(table, row_kind, layout)
        for row in split(table, row_kind, layout, images):
            found_row: dict[str, Any] = {"event": name, "table": f"{table.schema}.{table.table}"}
            for side, columns, image in zip(("before", "after"), sides, row, strict=True):
                if columns is not None and image is not None:
                    found_row[side] = json.loads(row_json(columns, image))
            yield _json(found_row)


def _json(found: dict[str, Any]) -> str:
    return json.dumps(found, ensure_ascii=False)
