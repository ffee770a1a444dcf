"""mysqlraft bootstrap"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mysqlraft import config, daemon
from mysqlraft.cli.errors import CommandError
from mysqlraft.cli.members import plain

HELP = "make the file's sites the members of a new cluster"
DESCRIPTION = """\
Writes the file's members as the first entry of an empty log in data_dir. `mysqlraft run` does the same on its first
start; this is for those who want to see it done. Doing it again changes nothing; with other members it is refused.

  mysqlraft bootstrap --config tokyo.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", type=Path, required=True, help="the site's YAML file")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    settings = config.load(args.config)
    try:
        store = daemon.open_store(settings)
        try:
            first = daemon.found(settings, store)
        finally:
            store.close()
    except daemon.StartError as error:
        raise CommandError(str(error), error.status) from None
    members = daemon.founding_members(settings)
    if args.json:
        print(json.dumps({"data_dir": str(settings.data_dir), "changed": first, "members": plain(members)}, indent=2))
    else:
        done = "is bootstrapped" if first else "was bootstrapped before, nothing changed"
        print(f"{settings.data_dir} {done}: {members}")
    return 0
