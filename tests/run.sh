#!/usr/bin/env bash
# All tests, on real servers of both kinds: tests/run.sh [arguments of pytest]
# Without arguments, 2,000 simulated clusters come first: while they have all cores, they take a minute.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./deploy/setup.sh --dev
if (($# == 0)); then
    .venv/bin/python -m tests.simulation --seeds 2000
fi
exec .venv/bin/python -m pytest "$@"
