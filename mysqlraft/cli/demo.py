"""mysqlraft demo"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from mysqlraft.cli.errors import EXIT_NO, CommandError
from mysqlraft.config import MAX_SITES
from mysqlraft.sandbox.board import Board
from mysqlraft.sandbox.cluster import Cluster, ClusterError
from mysqlraft.sandbox.installation import ENGINES, Installation
from mysqlraft.sandbox.servers import ServerError, ServerNotFound, find_server, find_servers
from mysqlraft.sandbox.show import Show

HELP = "six sites on this machine: everybody writes, one is cut off, all end identical"
DESCRIPTION = """\
Starts private database servers with one daemon each, on loopback and with free ports, and lets applications write at
every site at once, deliberately to the same rows. Midway one site is cut off and connected again. Then nobody writes,
every site applies the rest, and all tables of all sites are compared. Nothing is left running, and nothing outside
DIR is touched.

  mysqlraft demo                               six sites, 20 seconds of writing
  mysqlraft demo --engine mariadb --rtt 100    on MariaDB, 100 ms between any two sites
  mysqlraft demo --hold --dir /tmp/six         leave six idle sites running until Ctrl-C, to try things out;
                                               /tmp/six/sites.json says how to reach them
"""

# A directory that holds this file was made by an earlier demo, and the next one may empty it.
_MARK = ".mysqlraft-demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sites", type=_sites, default=6, metavar="N", help=f"how many, 1 to {MAX_SITES} (6)")
    parser.add_argument(
        "--engine", choices=("auto", *ENGINES), default="auto", help="which servers (auto: mysql first)"
    )
    parser.add_argument("--seconds", type=_positive, default=20.0, metavar="S", help="how long applications write (20)")
    parser.add_argument("--dir", type=Path, help="where everything is kept (a temporary directory, removed at the end)")
    parser.add_argument(
        "--rtt", type=_not_negative, default=0.0, metavar="MS", help="round-trip time between sites (0)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, the rest to stderr")
    parser.add_argument("--hold", action="store_true", help="no writes: leave the sites running until Ctrl-C")


def run(args: argparse.Namespace) -> int:
    board = Board(sys.stderr if args.json else sys.stdout)
    try:
        installation = _installation(args.engine)
        with _terminated_is_interrupted(), _directory(args.dir) as directory:
            return _run(args, board, installation, directory)
    except (ServerNotFound, ServerError, ClusterError, OSError) as error:
        raise CommandError(str(error)) from error


def _run(args: argparse.Namespace, board: Board, installation: Installation, directory: Path) -> int:
    kind = "MySQL" if installation.engine == "mysql" else "MariaDB"
    board.plain(f"mysqlraft demo: {args.sites} sites on {kind} {installation.version_text}, in {directory}")
    if args.rtt:
        board.plain(f"every link is {args.rtt:g} ms long (round trip)")
    cluster = Cluster.create(installation, directory, sites=args.sites, rtt=args.rtt / 1000)
    try:
        cluster.start_servers()
        board.say(f"{args.sites} servers have started")
        cluster.start_daemons()
        cluster.wait_ready()
        leader = cluster.leader()
        assert leader is not None
        board.say(f"{args.sites} daemons have started; the leader is {cluster[leader].name}")
        if args.hold:
            return _hold(args, board, cluster)
        verdict = Show(cluster, board, args.seconds).run()
    finally:
        cluster.close()
    board.plain()
    if verdict.good:
        board.plain(
            f"IDENTICAL: all {len(verdict.comparison.tables)} tables are the same at all {args.sites} sites, and each"
            f" of the {verdict.transactions:,} transactions is there exactly once ({verdict.conflicts:,} conflicts)."
        )
    else:
        board.plain("DIFFERENT: the sites do not hold the same. This is a bug; see above for the rows.")
    if args.json:
        print(json.dumps({"sites": args.sites, "engine": installation.engine, **verdict.to_dict()}))
    return 0 if verdict.good else EXIT_NO


def _hold(args: argparse.Namespace, board: Board, cluster: Cluster) -> int:
    listing = cluster.directory / "sites.json"
    sites = [site.description() for site in cluster]
    # Whoever waits for the file must never read half of it.
    partial = listing.with_suffix(".partial")
    partial.write_text(json.dumps(sites, indent=2) + "\n")
    partial.chmod(0o600)
    partial.replace(listing)
    for site in cluster:
        board.plain(f"  {site.name:10} mysql {site.server.address[0]}:{site.server.port}  admin {site.daemon.admin}")
    board.say(f"running until Ctrl-C; how to reach the sites: {listing}")
    if args.json:
        print(json.dumps(sites), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    board.say("stopping")
    return 0


def _installation(engine: str) -> Installation:
    """The servers to use; `auto` takes what is there."""
    if engine != "auto":
        kind = next(kind for kind in ENGINES if kind == engine)
        return find_servers(kind)[kind]
    for kind in ENGINES:
        if (installation := find_server(kind)) is not None:
            return installation
    return next(iter(find_servers().values()))


@contextlib.contextmanager
def _directory(wanted: Path | None) -> Iterator[Path]:
    """The demo's directory: the wanted one, empty, or a temporary one that goes at the end."""
    if wanted is None:
        with tempfile.TemporaryDirectory(prefix="mysqlraft-demo-", ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)
        return
    directory = wanted.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / _MARK).exists():
        for entry in directory.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    elif any(directory.iterdir()):
        raise CommandError(f"{directory} is not empty, and not an earlier demo's: name another --dir")
    (directory / _MARK).touch()
    yield directory


@contextlib.contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: everything it started goes first."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _sites(text: str) -> int:
    number = int(text)
    if not 1 <= number <= MAX_SITES:
        raise argparse.ArgumentTypeError(f"1 to {MAX_SITES}, not {number}")
    return number


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"more than 0, not {text}")
    return number


def _not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"0 or more, not {text}")
    return number
