#!/usr/bin/env bash
# Sets everything up on a Debian or Ubuntu machine: the virtual environment, the package, database servers.
# A second run finds it all in place, takes a moment and needs no network.
#
#   deploy/setup.sh          for the demo: at least one kind of server
#   deploy/setup.sh --dev    for the tests: both kinds of server, pytest, mypy, ruff, systemd-analyze, docker-compose
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")/lib"
# shellcheck source=deploy/lib/common.sh
. "$here/common.sh"
# shellcheck source=deploy/lib/apt.sh
. "$here/apt.sh"
# shellcheck source=deploy/lib/servers.sh
. "$here/servers.sh"
# shellcheck source=deploy/lib/tools.sh
. "$here/tools.sh"
# shellcheck source=deploy/lib/python.sh
. "$here/python.sh"

mode=run servers=any
case "${1:-}" in
"") ;;
--dev) mode=dev servers=all ;;
*) fail "unknown argument $1" "Usage: deploy/setup.sh [--dev]" ;;
esac

[ "$(uname -s)" = Linux ] || fail "this is $(uname -s); mysqlraft runs on Linux"
lock_cache
ensure_python "$mode"
ensure_servers "$servers"
if [ "$mode" = dev ]; then
    # They check deploy/systemd and docker-compose.yml.
    ensure_tool systemd-analyze systemd
    ensure_tool docker-compose docker-compose
fi
say "ready"
