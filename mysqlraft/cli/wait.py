"""mysqlraft wait"""

from __future__ import annotations

import argparse

from mysqlraft.cli import admin, barrier

HELP = "return once this site's server holds the log up to an index"
DESCRIPTION = """\
Waits until this site's server has applied the log up to an index, such as one that `mysqlraft barrier` or `status`
showed at another site.

  mysqlraft wait --index 4711 --config oslo.yaml

exit status: 0 it holds it; 1 not in time; 3 the daemon does not answer
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index", type=log_index, required=True, help="the log index")
    admin.add_arguments(parser)
    admin.add_timeout(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    barrier.report(admin.daemon(args).post("/wait", {"index": args.index}, args.timeout), args.json)
    return 0


def log_index(text: str) -> int:
    """A log index on the command line."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a log index")
    return int(text)
