"""mysqlraft status"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from mysqlraft.cli import admin
from mysqlraft.cli.errors import EXIT_NO

HELP = "the cluster at a glance"
DESCRIPTION = """\
Asks this site's daemon what it knows of the cluster, and prints a line for each site: what it has applied, how far
it is behind, and its state with the reason for it.

  mysqlraft status --config tokyo.yaml
  mysqlraft status                        the daemon on the default admin address
  mysqlraft status --json                 everything there is to know, for programs

exit status: 0 every site is running; 1 one is not, or there is no leader; 3 the daemon does not answer
"""

COLUMNS = ("site", "role", "applied", "behind", "lag", "pending", "conflicts", "capture", "state")
_NUMBERS = (2, 3, 4, 5, 6)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    admin.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the whole status as JSON")


def run(args: argparse.Namespace) -> int:
    status = admin.daemon(args).get("/status")
    if args.json:
        print(json.dumps(status, indent=2))
    else:
        print("\n".join(lines(status)))
    good = status["leader"] is not None and all(row["state"] == "running" for row in status["sites"])
    return 0 if good else EXIT_NO


def lines(status: dict[str, Any]) -> Iterator[str]:
    """The status for people."""
    leader = status["leader"] or "none"
    yield f"cluster {status['cluster']}: leader {leader}, term {status['term']}, committed {status['commit_index']:,}"
    if status["transfer"]:
        yield f"leadership is being handed over to {status['transfer']}"
    yield from (f"note: {note}" for note in status["notes"])
    yield ""
    yield from table([COLUMNS, *(_cells(row) for row in status["sites"])])


def table(rows: Sequence[Sequence[str]], numbers: Sequence[int] = _NUMBERS) -> Iterator[str]:
    """Columns side by side: numbers to the right, everything else to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    lag = row.get("lag") or {}
    seconds = lag.get("seconds")
    capture = row.get("capture") or {}
    role = row.get("role") or "-"
    standing = ["witness"] if row["witness"] else []
    standing += [] if row["voter"] else ["nonvoter"]
    standing += [f"priority {row['priority']}"] if row["priority"] else []
    return (
        row["name"],
        f"{role} ({', '.join(standing)})" if standing else role,
        _number(row.get("applied")),
        _number(lag.get("entries")),
        "-" if seconds is None else f"{seconds:.1f} s",
        _number(row.get("pending")),
        _number(row.get("conflicts")),
        f"{capture['file']}:{capture.get('offset')}" if capture.get("file") else "-",
        f"{row['state']}: {row['reason']}" if row.get("reason") else row["state"],
    )


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
