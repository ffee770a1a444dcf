"""mysqlraft recover"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mysqlraft import config
from mysqlraft.cli.errors import EXIT_NO, EXIT_USAGE, CommandError
from mysqlraft.cli.members import plain
from mysqlraft.config import Config
from mysqlraft.raft.configuration import Configuration, ConfigurationError
from mysqlraft.raft.leveldb_store import LevelDBStore
from mysqlraft.raft.recovery import check, read_peers, recover
from mysqlraft.raft.store import StoreError, WrongDirectory

HELP = "force other members on a site, when the majority of the cluster is lost for good"
DESCRIPTION = """\
The last resort. A cluster that has lost the majority of its voters commits nothing any more, no new members either.
This writes new members into the stopped daemon's log directory, past all agreement (hashicorp/raft's peers.json):

  1. Make sure that the lost sites are lost: that their daemons will never start again with their old data_dir.
  2. Stop the daemons of all sites that are left.
  3. Write FILE, the same for all of them, with the sites that go on:
       [{"id": 1, "address": "10.1.0.1:7450"},
        {"id": 4, "address": "10.4.0.1:7450"},
        {"id": 6, "address": "10.6.0.1:7450", "non_voter": true}]
     What is not given stays as it was. Keys: id, name, address, non_voter, witness, priority.
  4. Run this at each of them, and start them again. The one with the most complete log leads; what none of them
     has is lost. So take all that are left, and note the last index that each of them prints.
  5. Build further sites anew, with empty directories.

  mysqlraft recover --config tokyo.yaml --peers peers.json          shows what it would do, and asks
  mysqlraft recover --config tokyo.yaml --peers peers.json --yes    for scripts
  mysqlraft recover --config tokyo.yaml --peers peers.json --json   shows it as JSON, and does it only with --yes

exit status: 0 done; 1 not done: the answer was no, --json came without --yes, or the disk failed; 2 the file or the
directory is wrong, or the daemon runs
"""

WARNINGS = """\
  - What was committed and is in the log of none of these sites is lost to the cluster, though it may have been
    confirmed to applications, and be in the tables of the lost sites or even of these.
  - What was never committed, and is in the log of one of these sites, may be committed now.
  - If the lost sites start again with their old directories, there may be two clusters, and both take writes.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", type=Path, required=True, help="the site's YAML file")
    parser.add_argument("--peers", metavar="FILE", type=Path, required=True, help="the members from now on, as JSON")
    parser.add_argument("--yes", action="store_true", help="do it without asking")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    settings = config.load(args.config)
    if not (settings.data_dir / "log").is_dir():
        raise CommandError(f"data_dir: {settings.data_dir} holds no log to go on with", EXIT_USAGE)
    try:
        store = LevelDBStore(settings.data_dir, settings.cluster.id, settings.own.id)
    except WrongDirectory as error:
        raise CommandError(f"data_dir: {error}", EXIT_USAGE) from None
    except StoreError as error:
        raise CommandError(f"data_dir: {error}") from None
    try:
        members = _members(store)
        peers = read_peers(args.peers, members)
        check(store, settings.own.id, peers)
        if args.json:
            return _as_json(settings, store, members, peers, do=args.yes)
        print(f"site {settings.site} of cluster {settings.cluster.id}, {settings.data_dir}")
        print(f"its log: up to index {store.last_index}, term {_last_term(store)}; committed at least {store.commit}")
        print(f"members now:  {members}")
        print(f"from now on:  {peers}")
        print(WARNINGS, end="")
        if not args.yes and not _confirmed(settings.cluster.id):
            print("nothing was changed")
            return EXIT_NO
        recover(store, settings.own.id, peers)
    except ConfigurationError as error:
        raise CommandError(str(error), EXIT_USAGE) from None
    except StoreError as error:
        raise CommandError(f"data_dir: {error}") from None
    finally:
        store.close()
    print("done: now the same at every other site of the file that is left, and then start the daemons")
    return 0


def _as_json(settings: Config, store: LevelDBStore, before: Configuration, peers: Configuration, *, do: bool) -> int:
    """Nobody is asked: a program reads this."""
    shown: dict[str, Any] = {
        "cluster": settings.cluster.id,
        "site": settings.site,
        "data_dir": str(settings.data_dir),
        "last_index": store.last_index,
        "last_term": _last_term(store),
        "committed": store.commit,
        "before": plain(before),
        "members": plain(peers),
        "done": do,
    }
    if do:
        recover(store, settings.own.id, peers)
    print(json.dumps(shown, indent=2))
    return 0 if do else EXIT_NO


def _members(store: LevelDBStore) -> Configuration:
    configurations = store.configurations()
    if not configurations:
        raise ConfigurationError(f"{store.directory} holds no members: this site never belonged to a cluster")
    return configurations[-1][1]


def _last_term(store: LevelDBStore) -> int:
    last = store.last_index
    return store.entries(last, last, 1)[0].term if last > store.base.index else store.base.term


def _confirmed(cluster: str) -> bool:
    if not sys.stdin.isatty():
        raise CommandError("nobody can be asked here: give --yes to do it without", EXIT_USAGE)
    try:
        return input(f"Type the cluster's name ({cluster}) to go on: ").strip() == cluster
    except EOFError:
        return False
