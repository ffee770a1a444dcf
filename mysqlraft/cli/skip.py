"""mysqlraft skip"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import socket

from mysqlraft.cli import admin
from mysqlraft.cli.wait import log_index

HELP = "go on behind the statement or the own transaction at which this site has stopped"
DESCRIPTION = """\
For a site that has stopped at a statement (DDL): `mysqlraft status` says at which log index, and why. First make the
tables what they are to be after the statement, by hand and with SET SESSION sql_log_bin = 0: it will not be run here.
Then this, and the site goes on with the next log index at once. Where every site has stopped, say it to each.

  mysqlraft skip --index 4711 --config tokyo.yaml

A site may also have stopped at rows which a statement took to another name before they were in the log. Make the tables
equal at all sites first. These rows are not skipped: they are written to the tables that have the names now.

For a site whose capture has stopped at a transaction of its own applications: `mysqlraft status` names it, by its GTID
or by file and offset. It is left out whole, so no other site will have what it did. It is written to a file in data_dir
first, whose path is printed: its rows as far as they can be read, and its events. See docs/operations.md for what to do
with them.

  mysqlraft skip --captured 3e11fa47-71ca-11e1-9e33-c80aa9429562:23 --config tokyo.yaml
  mysqlraft skip --captured binlog.000007:4711 --config tokyo.yaml

The decision is kept in data_dir, with your name, and logged. Anything but what the site has stopped at is refused.

exit status: 0 the site goes on; 1 it has not stopped at that; 3 the daemon does not answer
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--index", type=log_index, help="the log index at which the site has stopped")
    what.add_argument("--captured", metavar="GTID|FILE:OFFSET", help="the own transaction at which capture has stopped")
    admin.add_arguments(parser)
    admin.add_timeout(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    # Whoever has become root is known to sudo.
    who = f"{os.environ.get('SUDO_USER') or getpass.getuser()}@{socket.gethostname()}"
    wanted = {"index": args.index} if args.captured is None else {"captured": args.captured}
    done = admin.daemon(args).post("/skip", {**wanted, "by": who}, args.timeout)
    if args.json:
        print(json.dumps(done, indent=2))
    elif args.captured is not None:
        print(f"goes on without {done['captured']}, which is in {done['rows']}; skipped: {done['reason']}")
    else:
        print(f"goes on from log index {done['index']}, where it had stopped: {done['reason']}")
    return 0
