"""python -m tests.simulation.plant [--seeds N]: plant every known bug in turn, and tell which seed found it."""

from __future__ import annotations

import argparse
import sys

from tests.simulation.bugs import BUGS, planted
from tests.simulation.runner import run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.plant", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="give up after so many (default 2000)")
    parser.add_argument("names", nargs="*", help="only these bugs")
    arguments = parser.parse_args()
    missed = 0
    for name in arguments.names or BUGS:
        with planted(name):
            for seed in range(arguments.seeds):
                failure = run_seed(seed)
                if failure is not None:
                    print(f"{name}: found after {seed + 1} seeds: {failure.reason[:150]}", flush=True)
                    break
            else:
                missed += 1
                print(f"{name}: NOT FOUND in {arguments.seeds} seeds", flush=True)
    print(f"{len(arguments.names or BUGS) - missed} of {len(arguments.names or BUGS)} planted bugs found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
