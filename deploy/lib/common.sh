# Shared by the set-up scripts: where things are kept, and how they speak. Sourced, never run.
# shellcheck shell=bash

REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
VENV="$REPO/.venv"
CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/mysqlraft"
export REPO VENV CACHE

# Everything is said on stderr: stdout belongs to the program that is started afterwards (demo --json).
say() { printf 'setup: %s\n' "$*" >&2; }

# fail WHAT HOW-TO-FIX...: one line each.
fail() {
    printf 'setup: ERROR: %s\n' "$1" >&2
    shift
    local hint
    for hint in "$@"; do printf 'setup:        %s\n' "$hint" >&2; done
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# os_release KEY: the value of KEY in /etc/os-release, or nothing.
os_release() { (. /etc/os-release 2>/dev/null && eval "printf '%s' \"\${$1:-}\""); }

# logged FILE COMMAND...: runs COMMAND with its output in FILE; shows the end of it only if it fails.
logged() {
    local log="$1"
    shift
    "$@" >"$log" 2>&1 && return 0
    tail -n 15 "$log" | sed 's/^/setup:   | /' >&2
    return 1
}

# Two set-ups at once (two test runs, say) take turns. The lock ends with the process.
lock_cache() {
    mkdir -p "$CACHE" || fail "cannot make the cache directory $CACHE" "set XDG_CACHE_HOME to a directory you may write to"
    exec 9>"$CACHE/setup.lock"
    flock -n 9 || { say "waiting for another set-up to finish"; flock 9; }
}
