"""mysqlraft barrier"""

from __future__ import annotations

import argparse
import json

from mysqlraft.cli import admin

HELP = "return once this site's server holds everything committed before now"
DESCRIPTION = """\
Asks the leader what is committed (ReadIndex: a majority confirms that it still leads), and waits until this site's
server has applied that much. A read at this server after it sees every transaction, from any site, that was committed
in the log before the command was given. One that another site's server had committed, and that was not in the log yet
(`pending` there), may still be missing.

  mysqlraft barrier --config oslo.yaml
  mysqlraft barrier --config oslo.yaml --timeout 60 && mysql -e 'SELECT ...'

exit status: 0 it holds it; 1 not in time; 3 the daemon, or a leader, does not answer
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    admin.add_arguments(parser)
    admin.add_timeout(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    report(admin.daemon(args).post("/barrier", {}, args.timeout), args.json)
    return 0


def report(done: dict[str, float], as_json: bool) -> None:
    """Prints what /barrier and /wait answer."""
    if as_json:
        print(json.dumps(done, indent=2))
    else:
        print(f"applied up to index {done['index']} (waited {done['waited_ms']:.0f} ms)")
