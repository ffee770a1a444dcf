#!/usr/bin/env bash
# Six sites on this machine: deploy/demo.sh [arguments of mysqlraft demo]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./deploy/setup.sh
exec .venv/bin/mysqlraft demo "$@"
