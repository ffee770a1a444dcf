"""mysqlraft version"""

import argparse
import json
import platform

from mysqlraft import __version__

HELP = "what is installed"
DESCRIPTION = "Prints the versions of mysqlraft and Python."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    python, system, machine = platform.python_version(), platform.system(), platform.machine()
    if args.json:
        shown = {"mysqlraft": __version__, "python": python, "system": system, "machine": machine}
        print(json.dumps(shown, indent=2))
    else:
        print(f"mysqlraft {__version__} (Python {python}, {system} {machine})")
    return 0
