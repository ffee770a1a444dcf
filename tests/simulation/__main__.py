"""python -m tests.simulation --seeds N [--start S] [--jobs J]: exit status 1 if any seed breaks a rule."""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.simulation.runner import explain, run_seeds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="Simulate clusters under faults.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds (default 1000)")
    parser.add_argument("--start", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    arguments = parser.parse_args()
    if min(arguments.seeds, arguments.jobs) < 1:
        parser.error("--seeds and --jobs are at least 1: nothing that was not run has passed")
    began = time.monotonic()
    failures = []
    for done, failure in enumerate(run_seeds(arguments.start, arguments.seeds, arguments.jobs), 1):
        if failure is not None:
            failures.append(failure)
            print(f"seed {failure.seed}: {failure.reason}", flush=True)
        if done % 1000 == 0:
            rate = done / (time.monotonic() - began)
            print(f"{done} seeds, {len(failures)} failed, {rate:.0f} seeds/s", flush=True)
    if failures:
        print(explain(min(failures)))
    took = time.monotonic() - began
    print(f"{arguments.seeds} seeds from {arguments.start} on: {len(failures)} failed, {took:.1f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
