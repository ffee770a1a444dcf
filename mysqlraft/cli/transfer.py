"""mysqlraft transfer"""

from __future__ import annotations

import argparse
import json

from mysqlraft.cli import admin

HELP = "hand the leadership over to another site"
DESCRIPTION = """\
Has the leader hand over its leadership: to SITE, or to the voter that is most fit to lead. Ask any member's daemon. The
leader takes no proposals meanwhile; if nobody has taken over within an election timeout it goes on as before, and this
says so. A site of a greater priority takes the leadership back after a while (mysqlraft members priority).

  mysqlraft transfer --config tokyo.yaml          before work on the leader's machine
  mysqlraft transfer oslo --config tokyo.yaml

exit status: 0 the site leads; 1 it does not, or that is not known; 3 no daemon or no leader answers
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("site", nargs="?", metavar="SITE", help="its name or id; without it, the fittest voter")
    admin.add_arguments(parser)
    admin.add_timeout(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    wish = {} if args.site is None else {"site": int(args.site) if args.site.isdecimal() else args.site}
    done = admin.daemon(args).post("/transfer", wish, args.timeout)
    if args.json:
        print(json.dumps(done, indent=2))
    else:
        print(f"{done['name']} leads {'now' if done['moved'] else 'already'}")
    return 0
