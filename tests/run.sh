#!/usr/bin/env bash
# All tests, on real servers of both kinds: tests/run.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./deploy/setup.sh --dev
exec .venv/bin/python -m pytest "$@"
