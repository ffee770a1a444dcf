"""mysqlraft skip"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import socket

from mysqlraft.cli import admin
from mysqlraft.cli.wait import log_index

HELP = "go on behind the statement at which this site has stopped"
DESCRIPTION = """\
For a site that has stopped at a statement (DDL): `mysqlraft status` says at which log index, and why. First make the
tables what they are to be after the statement, by hand and with SET SESSION sql_log_bin = 0: it will not be run here.
Then this, and the site goes on with the next log index at once. The decision is kept in data_dir, with your name, and
logged. Any index but the one at which the site has stopped is refused. Where every site has stopped, say it to each.

  mysqlraft skip --index 4711 --config tokyo.yaml

exit status: 0 the site goes on; 1 it has not stopped at that statement; 3 the daemon does not answer
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index", type=log_index, required=True, help="the log index at which the site has stopped")
    admin.add_arguments(parser)
    admin.add_timeout(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    # Whoever has become root is known to sudo.
    who = f"{os.environ.get('SUDO_USER') or getpass.getuser()}@{socket.gethostname()}"
    done = admin.daemon(args).post("/skip", {"index": args.index, "by": who}, args.timeout)
    if args.json:
        print(json.dumps(done, indent=2))
    else:
        print(f"goes on behind log index {done['index']}; skipped: {done['reason']}")
    return 0
