"""The ``mysqlraft`` command: one module a verb.

A verb's module has

    HELP                       one line, for ``mysqlraft --help``
    DESCRIPTION                what ``mysqlraft VERB --help`` teaches, with examples
    add_arguments(parser)      its options
    run(args) -> int           does it, and returns the exit status

and raises `CommandError` for what the user has to know in one line. A module is imported only when its verb is used.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from mysqlraft import __version__
from mysqlraft.cli.errors import EXIT_INTERRUPTED, EXIT_USAGE, CommandError
from mysqlraft.keys import ConfigError

# verb -> its module. The order is that of the help.
VERBS = {
    "run": "mysqlraft.cli.run",
    "check": "mysqlraft.cli.check",
    "status": "mysqlraft.cli.status",
    "conflicts": "mysqlraft.cli.conflicts",
    "members": "mysqlraft.cli.members",
    "transfer": "mysqlraft.cli.transfer",
    "barrier": "mysqlraft.cli.barrier",
    "wait": "mysqlraft.cli.wait",
    "skip": "mysqlraft.cli.skip",
    "bootstrap": "mysqlraft.cli.bootstrap",
    "log": "mysqlraft.cli.log",
    "recover": "mysqlraft.cli.recover",
    "config": "mysqlraft.cli.config",
    "certificates": "mysqlraft.cli.certificates",
    "demo": "mysqlraft.cli.demo",
    "version": "mysqlraft.cli.version",
}

DESCRIPTION = """\
Replicates writable MySQL and MariaDB servers in several datacentres through one Raft log.
One daemon runs beside each site's server:

  mysqlraft config --config tokyo.yaml    is the configuration right?
  mysqlraft check --config tokyo.yaml     is the server ready for it? If not, the SQL that makes it so
  mysqlraft run --config tokyo.yaml       the daemon itself
  mysqlraft status --config tokyo.yaml    the cluster at a glance
"""

EPILOG = """\
exit status: 0 done; 1 the answer is no (findings, a site not in order); 2 a wrong command line or configuration;
3 the daemon or the server cannot be reached. `mysqlraft run --help` has the daemon's own.
Every verb but run prints JSON with --json. `mysqlraft VERB --help` shows the options of a verb, with examples.
"""


class Verb(Protocol):
    HELP: str
    DESCRIPTION: str

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser, /) -> None: ...

    @staticmethod
    def run(args: argparse.Namespace, /) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    args = _parser(arguments).parse_args(arguments)
    try:
        status = cast(Verb, args.verb).run(args)
        sys.stdout.flush()
    except CommandError as error:
        print(f"mysqlraft: {error}", file=sys.stderr)
        return error.status
    except ConfigError as error:
        for problem in error.problems:
            print(f"mysqlraft: {problem}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The command line; only the verb that is used is imported, unless help is asked for."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="mysqlraft", description=DESCRIPTION, epilog=EPILOG, formatter_class=formatter
    )
    parser.add_argument("--version", action="version", version=f"mysqlraft {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    used = next((argument for argument in arguments if argument in VERBS), None)
    for name, module in VERBS.items():
        if used in (None, name):
            verb = cast(Verb, importlib.import_module(module))
            sub = verbs.add_parser(name, help=verb.HELP, description=verb.DESCRIPTION, formatter_class=formatter)
            verb.add_arguments(sub)
            sub.set_defaults(verb=verb)
    return parser
