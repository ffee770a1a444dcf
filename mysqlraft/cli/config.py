"""mysqlraft config"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import yaml

from mysqlraft import config as configuration
from mysqlraft import keys
from mysqlraft.cli.errors import EXIT_USAGE, CommandError

HELP = "check a configuration file and show what it amounts to"
DESCRIPTION = """\
Reads a configuration file and prints every key with the value in effect, secrets masked.
If something is wrong with it, every problem is named, with its line, and the exit status is 2.

  mysqlraft config --config tokyo.yaml
  mysqlraft config --config tokyo.yaml --json
  mysqlraft config --reference             every key there is, as Markdown
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", type=Path, help="the site's YAML file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of YAML")
    parser.add_argument("--reference", action="store_true", help="print what every key means")


def run(args: argparse.Namespace) -> int:
    if args.reference:
        print("\n".join(reference()))
        return 0
    if args.config is None:
        raise CommandError("--config FILE is needed (or --reference)", EXIT_USAGE)
    shown = keys.effective(configuration.load(args.config))
    print(json.dumps(shown, indent=2) if args.json else yaml.safe_dump(shown, sort_keys=False), end="\n" * args.json)
    return 0


def reference() -> Iterator[str]:
    """Lines of a Markdown table of every key: docs/configuration.md holds it."""
    yield "| key | default | unit | SIGHUP | meaning |"
    yield "|---|---|---|---|---|"
    for path, key, default in keys.walk(configuration.Config):
        yield f"| `{path}` | {_default(default, key.unit)} | {key.unit} | {key.reload} | {key.meaning} |"


def _default(default: Any, unit: str) -> str:
    if default is MISSING:
        return "required"
    if default is None:
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if unit == "bytes":
        return f"`{keys.show_size(default)}`"
    if isinstance(default, tuple):
        return f"`{json.dumps(default)}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
