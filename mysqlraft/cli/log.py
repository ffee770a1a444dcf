"""mysqlraft log"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from mysqlraft import config
from mysqlraft.cli.errors import EXIT_NO, EXIT_USAGE, CommandError
from mysqlraft.config import Config
from mysqlraft.raft.entry import HEADER_SIZE, Entry, payload_checksum
from mysqlraft.raft.inspection import REMEDY, Copy, Damaged
from mysqlraft.raft.leveldb_store import FORMAT_VERSION, wrong_format
from mysqlraft.raft.store import StoreError

HELP = "show the entries of this site's log, or verify that all of it is sound"
DESCRIPTION = """\
Reads the log in the site's data_dir, while the daemon runs or not: from a copy that it makes there for the moment, so
it needs as much room again, and an account that may read data_dir. It never writes to the log itself.

  mysqlraft log show --config tokyo.yaml                       the last 20 entries
  mysqlraft log show --config tokyo.yaml --from 100 --to 200
  mysqlraft log show --config tokyo.yaml --from 1 --json       all of them, one JSON object a line, for programs
  mysqlraft log verify --config tokyo.yaml                     every checksum, and that each entry continues the last

origin, session and sequence name a proposal: which site captured it, in which run, and which one it was. chain is the
checksum of the whole log up to an entry: at two sites it is the same at the same index, or their logs differ.

exit status: 0 the log is sound; 1 it is not, and what was found is printed; 2 there is no such log, or
no such entries in it
"""

SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("show", "verify"), help="show entries, or verify them")
    parser.add_argument("--config", metavar="FILE", type=Path, required=True, help="the site's YAML file")
    parser.add_argument("--from", dest="first", type=_index, metavar="N", help="the first index")
    parser.add_argument("--to", dest="last", type=_index, metavar="N", help="the last index")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def run(args: argparse.Namespace) -> int:
    settings = config.load(args.config)
    try:
        with Copy(settings.data_dir) as copy:
            _check_owner(copy, settings)
            first, last = copy.bounds()
            default = max(first, (args.last or last) - SHOWN + 1) if args.what == "show" else first
            wanted = args.first or default, args.last or last
            if not first <= wanted[0] <= wanted[1] <= last and not (last < first and args.what == "verify"):
                held = f"the entries {first} to {last}" if first <= last else "no entries"
                raise CommandError(f"the log holds {held}, not {wanted[0]} to {wanted[1]}", EXIT_USAGE)
            act: Callable[[Copy, int, int, bool], int] = _show if args.what == "show" else _verify
            return act(copy, *wanted, args.json)
    except Damaged as error:
        raise CommandError(f"data_dir: {error}") from None
    except StoreError as error:
        raise CommandError(f"data_dir: {error}", EXIT_USAGE) from None


def _check_owner(copy: Copy, settings: Config) -> None:
    version, cluster, site = copy.owner()
    if version != FORMAT_VERSION:
        raise StoreError(wrong_format(settings.data_dir, version))
    if (cluster, site) != (settings.cluster.id, settings.own.id):
        raise StoreError(
            f"{settings.data_dir} belongs to site {site} of cluster {cluster!r}, "
            f"this is site {settings.own.id} of cluster {settings.cluster.id!r}"
        )


def _show(copy: Copy, first: int, last: int, as_json: bool) -> int:
    sound = True
    layout = "{:>10} {:>7} {:13} {:>6} {:>17} {:>9} {:>9}  {:16}  {}"
    if not as_json:
        print(layout.format("index", "term", "kind", "origin", "session", "sequence", "bytes", "checksum", "chain"))
    for index, entry in copy.entries(first, last):
        if isinstance(entry, str):
            sound = False
            print(json.dumps({"index": index, "problem": entry}) if as_json else f"{index:>10} {entry}")
            continue
        shown = _shown(entry)
        if as_json:
            print(json.dumps(shown))
        else:
            print(layout.format(*("-" if value is None else value for value in shown.values())))
    return 0 if sound else EXIT_NO


def _shown(entry: Entry) -> dict[str, int | str | None]:
    own = entry.origin == 0
    return {
        "index": entry.index,
        "term": entry.term,
        "kind": entry.kind.name.lower(),
        "origin": None if own else entry.origin,
        "session": None if own else entry.session,
        "sequence": None if own else entry.sequence,
        "bytes": entry.size - HEADER_SIZE,
        "checksum": f"{payload_checksum(entry.payload):016x}",
        "chain": f"{entry.chain:016x}",
    }


def _verify(copy: Copy, first: int, last: int, as_json: bool) -> int:
    sound = broken = 0
    for finding in copy.verify(first, last):
        if finding is None:
            sound += 1
            continue
        broken += 1
        if as_json:
            print(json.dumps(finding._asdict()))
        elif finding.index:
            print(f"entry {finding.index} {finding.problem}")
        else:
            print(finding.problem)
    if as_json:
        print(json.dumps({"first": first, "last": last, "sound": sound, "problems": broken}))
    elif broken:
        print(f"{broken} problems in entries {first} to {last}. What to do: {REMEDY}")
    else:
        print(f"all {sound} entries are sound, {first} to {last}")
    return EXIT_NO if broken else 0


def _index(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"an index from 1 on, not {text!r}")
    return int(text)
