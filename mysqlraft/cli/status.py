"""mysqlraft status"""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mysqlraft import config
from mysqlraft.cli.errors import EXIT_NO, EXIT_UNREACHABLE, CommandError
from mysqlraft.config import AdminSettings
from mysqlraft.keys import Address, Refused

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
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--config", metavar="FILE", type=Path, help="the site's YAML file")
    where.add_argument("--admin", metavar="HOST:PORT", type=_address, help="the daemon's admin address")
    parser.add_argument("--json", action="store_true", help="print the whole status as JSON")


def run(args: argparse.Namespace) -> int:
    address = args.admin or (config.load(args.config).admin if args.config else AdminSettings()).listen
    status = fetch(address)
    if args.json:
        print(json.dumps(status, indent=2))
    else:
        print("\n".join(lines(status)))
    good = status["leader"] is not None and all(row["state"] == "running" for row in status["sites"])
    return 0 if good else EXIT_NO


def fetch(address: Address) -> dict[str, Any]:
    """The status that the daemon behind this address tells."""
    try:
        # A proxy of the environment has no business with loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{address}/status", timeout=5) as answer:
            status: dict[str, Any] = json.load(answer)
            return status
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise CommandError(
            f"the daemon at {address} does not answer ({reason}); is it running? (mysqlraft run, or its log)",
            EXIT_UNREACHABLE,
        ) from None


def lines(status: dict[str, Any]) -> Iterator[str]:
    """The status for people."""
    leader = status["leader"] or "none"
    yield f"cluster {status['cluster']}: leader {leader}, term {status['term']}, committed {status['commit_index']:,}"
    yield ""
    yield from table([COLUMNS, *(_cells(row) for row in status["sites"])])


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns side by side: numbers to the right, everything else to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (
            cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    lag = row.get("lag") or {}
    seconds = lag.get("seconds")
    capture = row.get("capture") or {}
    role = row.get("role") or "-"
    return (
        row["name"],
        role if row["voter"] else f"{role} (nonvoter)",
        _number(row.get("applied")),
        _number(lag.get("entries")),
        "-" if seconds is None else f"{seconds:.1f} s",
        _number(row.get("pending")),
        _number(row.get("conflicts")),
        f"{capture['file']}:{capture['offset']}" if capture.get("file") else "-",
        f"{row['state']}: {row['reason']}" if row.get("reason") else row["state"],
    )


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except Refused as refused:
        raise argparse.ArgumentTypeError(f"{text!r} is not {refused}") from None
