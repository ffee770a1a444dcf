"""The time zone SYSTEM of a statement's session: other sites may have another zone, so it cannot travel as it is.

It becomes the offset that it had at the moments that the statement is about. If it converts rows, and the zone has had
several offsets, no offset is right for all of them: then the rows travel with it (`carried_rows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mysqlraft.binlog.changes import SchemaChange
from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.key_source import ServerKeySource
from mysqlraft.binlog.zone_use import ZoneUse, zone_use
from mysqlraft.mysql.schema import named

REMEDY = "before such a statement, SET time_zone to a named zone or an offset, as '+00:00', or set default_time_zone so"
_FUNCTIONS = frozenset(("from_unixtime", "unix_timestamp"))
_OTHER_THAN_CLOCK = ("UNIX_TIMESTAMP", "SYSTEM_TIME")


@dataclass(frozen=True, slots=True)
class SystemZone:
    """``offset``: as "+02:00". ``converted``: the columns whose values no offset converts, so that rows are needed."""

    offset: str
    converted: tuple[str, ...] = ()


def system_zone(source: ServerKeySource, change: SchemaChange) -> SystemZone:
    """For a statement whose session had the time zone SYSTEM.

    Raises:
        BinlogError: nothing that can be carried means the same elsewhere.
        pymysql.err.MySQLError: the server cannot be asked.
    """
    use = zone_use(change.text, change.schema, change.timestamps)
    now = source.system_offset_at(str(change.context["timestamp"]))
    offsets = source.system_offsets_of(use.literals)
    if use.clock or not offsets:
        offsets.add(now)
    if len(offsets) > 1:
        if _has_timestamps(source, change):
            raise BinlogError(
                "its session's time zone was SYSTEM, which had several offsets at the times that the statement names: "
                f"{', '.join(map(_text, sorted(offsets)))} ({REMEDY})"
            )
        offsets = {now}
    converted: tuple[str, ...] = ()
    if (use.converted or use.computed) and source.system_zone_varies():
        _refuse_computed(source, change, use)
        converted = tuple(use.converted)
    return SystemZone(_text(offsets.pop()), converted)


def _has_timestamps(source: ServerKeySource, change: SchemaChange) -> bool:
    """Whether a literal of the statement may become a TIMESTAMP."""
    text = change.text.upper()
    return (
        any(word in text for word in _OTHER_THAN_CLOCK)
        or "TIMESTAMP" in text.replace("CURRENT_TIMESTAMP", "").replace("LOCALTIMESTAMP", "")
        or bool(_timestamps(source, change.tables))
    )


def _refuse_computed(source: ServerKeySource, change: SchemaChange, use: ZoneUse) -> None:
    zoned = _FUNCTIONS | (_timestamps(source, change.tables) if use.computed else frozenset())
    if found := sorted(use.computed & zoned):
        raise BinlogError(
            "its session's time zone was SYSTEM, which is not always the same offset from UTC, and the values of a "
            f"generated column depend on it ({', '.join(found)}; {REMEDY})"
        )


def _timestamps(source: ServerKeySource, tables: Sequence[tuple[str, str | None]]) -> frozenset[str]:
    """The columns of type TIMESTAMP that the tables have now, in lower case."""
    found: set[str] = set()
    for schema, table in tables:
        if table is not None:
            rows = source.query(
                "SELECT column_name FROM information_schema.columns WHERE data_type = 'timestamp'"
                f" AND {named('table_schema', schema, 'table_name', table)}"
            )
            found.update(str(row[0]).lower() for row in rows)
    return frozenset(found)


def _text(seconds: int) -> str:
    if seconds % 60:
        raise BinlogError(f"its session's time zone was SYSTEM, which was {seconds} seconds from UTC then ({REMEDY})")
    minutes = seconds // 60
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
