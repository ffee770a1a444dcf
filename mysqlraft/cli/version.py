"""mysqlraft version"""

import argparse
import platform

from mysqlraft import __version__

HELP = "what is installed"
DESCRIPTION = "Prints the versions of mysqlraft and Python."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace) -> int:
    del args
    print(f"mysqlraft {__version__} (Python {platform.python_version()}, {platform.system()} {platform.machine()})")
    return 0
