"""mysqlraft run"""

from __future__ import annotations

import argparse
from pathlib import Path

from mysqlraft import config, daemon

HELP = "the daemon: replicate this site until asked to stop"
DESCRIPTION = f"""\
Runs the site's daemon in the foreground; its log goes to standard error. On the first start with an empty data_dir the
cluster's members are those of the file. If the server is not fit to be replicated, the daemon runs but replication at
this site does not start: `mysqlraft status` and the log say why, `mysqlraft check` how to mend it.

  mysqlraft run --config tokyo.yaml
  systemctl start mysqlraft@tokyo

signals:
  SIGTERM, SIGINT  stop within seconds, with everything finished that was begun
  SIGHUP           read the file again (docs/configuration.md says what it changes); start replication again
                   where it had stopped

{daemon.EXIT_CODES}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", type=Path, required=True, help="the site's YAML file")


def run(args: argparse.Namespace) -> int:
    return daemon.run(config.load(args.config))
