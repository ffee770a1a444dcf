"""mysqlraft conflicts"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pymysql
from pymysql.connections import Connection

from mysqlraft import config
from mysqlraft.cli import server
from mysqlraft.cli.errors import EXIT_UNREACHABLE, CommandError

HELP = "what sites changed at once, and what came of it"
DESCRIPTION = """\
Shows the conflict history, newest last: rows that two sites changed without knowing of each other. It is the same at
every site, and is read from the site's own server (mysqlraft.conflicts).

  mysqlraft conflicts --config tokyo.yaml                        the last 20
  mysqlraft conflicts --config tokyo.yaml --since 1h             those of the last hour
  mysqlraft conflicts --config tokyo.yaml --table 'shop.*' --limit 0
  mysqlraft conflicts --config tokyo.yaml --follow --json        as they come, one JSON object a line, for programs
"""

_COLUMNS = (
    "log_index",
    "unit_number",
    "number",
    "schema_name",
    "table_name",
    "type",
    "row_key",
    "origin",
    "committed_at",
    "other_origin",
    "other_index",
    "other_committed_at",
    "image",
    "other_image",
    "resolution",
)
_SPAN = re.compile(r"(\d+)([smhd])")
_SPANS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_NO_SUCH_TABLE = (1049, 1146)
POLL_SECONDS = 0.5

Conflict = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", type=Path, required=True, help="the site's YAML file")
    parser.add_argument("--limit", type=_limit, default=20, metavar="N", help="show the newest N; 0: all (20)")
    parser.add_argument(
        "--since", type=_since, metavar="WHEN", help="90s, 10m, 2h, 3d ago, or a UTC time as in 2026-01-31T12:00"
    )
    parser.add_argument("--table", metavar="PATTERN", help="schema.table, with * and ? as in the configuration")
    parser.add_argument("--follow", action="store_true", help="go on, and show new ones as they come")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def run(args: argparse.Namespace) -> int:
    settings = config.load(args.config)
    names = {site.id: site.name for site in settings.cluster.sites}
    connection = server.connect(settings.server)
    try:
        found = list(_newest(connection, args))
        for conflict in found:
            _print(conflict, names, as_json=args.json)
        if not found and not args.follow and not args.json:
            print("no conflicts")
        last = _place(found[-1]) if found else None
        while args.follow:
            for conflict in _after(connection, args, last):
                _print(conflict, names, as_json=args.json)
                last = _place(conflict)
            time.sleep(POLL_SECONDS)
    except pymysql.err.MySQLError as error:
        if error.args[0] in _NO_SUCH_TABLE:
            raise CommandError(
                "there is no conflict history yet: the daemon makes it when it first replicates"
            ) from None
        raise CommandError(f"the server did not answer: {error.args[-1]}", EXIT_UNREACHABLE) from None
    finally:
        connection.close()
    return 0


def _newest(connection: Connection[Any], args: argparse.Namespace) -> Iterator[Conflict]:
    """The newest conflicts that are asked for, oldest first."""
    where, values = _where(args)
    limit = f" LIMIT {args.limit}" if args.limit else ""
    rows = _query(connection, f"{where} ORDER BY log_index DESC, unit_number DESC, number DESC{limit}", values)
    return (dict(zip(_COLUMNS, row, strict=True)) for row in reversed(rows))


def _after(
    connection: Connection[Any], args: argparse.Namespace, last: tuple[int, int, int] | None
) -> Iterator[Conflict]:
    where, values = _where(args)
    where += " AND (log_index, unit_number, number) > (%s, %s, %s)"
    rows = _query(connection, f"{where} ORDER BY log_index, unit_number, number", [*values, *(last or (-1, 0, 0))])
    return (dict(zip(_COLUMNS, row, strict=True)) for row in rows)


def _query(connection: Connection[Any], rest: str, values: Sequence[Any]) -> Sequence[Sequence[Any]]:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(_COLUMNS)} FROM mysqlraft.conflicts {rest}", values)
        rows: Sequence[Sequence[Any]] = cursor.fetchall()
        return rows


def _where(args: argparse.Namespace) -> tuple[str, list[Any]]:
    where, values = "WHERE TRUE", []
    if args.since is not None:
        where += " AND committed_at >= %s"
        values.append(args.since)
    if args.table is not None:
        schema, _, table = args.table.partition(".")
        where += " AND schema_name LIKE %s AND table_name LIKE %s"
        values += [_like(schema), _like(table or "*")]
    return where, values


def _like(pattern: str) -> str:
    escaped = pattern.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    return escaped.replace("*", "%").replace("?", "_")


def _place(conflict: Conflict) -> tuple[int, int, int]:
    return conflict["log_index"], conflict["unit_number"], conflict["number"]


def _print(conflict: Conflict, names: dict[int, str], *, as_json: bool) -> None:
    shown = {
        **conflict,
        "origin": names.get(conflict["origin"], str(conflict["origin"])),
        "other_origin": names.get(conflict["other_origin"], str(conflict["other_origin"])),
        **{name: _time(conflict[name]) for name in ("committed_at", "other_committed_at")},
    }
    if as_json:
        print(json.dumps(shown, ensure_ascii=False), flush=True)
        return
    other = shown["other_image"] or "deleted or not known"
    print(
        f"{shown['committed_at']}  {shown['schema_name']}.{shown['table_name']} {shown['row_key']}  {shown['type']}\n"
        f"    {shown['origin']} (index {shown['log_index']}): {shown['image'] or 'deleted'}\n"
        f"    {shown['other_origin']} (index {shown['other_index']}): {other}\n"
        f"    {shown['resolution']}",
        flush=True,
    )


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat(timespec="microseconds") + "Z"


def _limit(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a number, not {text!r}")
    return int(text)


def _since(text: str) -> datetime:
    if match := _SPAN.fullmatch(text):
        when = datetime.now(UTC) - timedelta(**{_SPANS[match[2]]: int(match[1])})
    else:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no time: 90s, 10m, 2h, 3d, or 2026-01-31T12:00") from None
    # The history's times are UTC without saying so.
    return when.astimezone(UTC).replace(tzinfo=None) if when.tzinfo else when
