# The virtual environment in .venv, with the package installed so that edits take effect. Sourced, never run.
# shellcheck shell=bash

# pick_python: the interpreter to use; PYTHON overrides it.
pick_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.13}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    fail "Python 3.11 or later not found (tried: ${PYTHON:-python3 python3.11 python3.12 python3.13})" \
        "Install it (as root: apt-get install python3), or name one: PYTHON=/path/to/python3.11 $0"
}

# make_venv PYTHON. Debian's python3 comes without the pip that the venv module copies (it is in python3-venv): then
# pip itself is taken from the distribution's package of that wheel, unpacked for this purpose only.
make_venv() {
    local python="$1" wheel=""
    rm -rf "$VENV"
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        say "python: making $VENV with $("$python" -V)"
        logged "$CACHE/venv.log" "$python" -m venv "$VENV" && return 0
        fail "cannot make $VENV; the log is $CACHE/venv.log"
    fi
    "$python" -c 'import venv' 2>/dev/null ||
        fail "$python has no venv module" "As root: apt-get install python3-venv"
    say "python: making $VENV with $("$python" -V); it has no pip of its own, so the distribution's is fetched"
    "$python" -m venv --without-pip "$VENV" || fail "cannot make $VENV"
    if apt_private "$CACHE/pip/apt" configured && apt_unpack "$CACHE/pip/apt" "$CACHE/pip/root" python3-pip-whl; then
        wheel="$(find "$CACHE/pip/root/usr/share/python-wheels" -name 'pip-*.whl' | sort -V | tail -n 1)"
    fi
    [ -n "$wheel" ] || fail "pip is missing and cannot be fetched" "As root: apt-get install python3-venv, then again: $0"
    logged "$CACHE/venv.log" env PYTHONPATH="$wheel" "$VENV/bin/python" -m pip install --no-index "$wheel" ||
        fail "cannot install pip into $VENV; the log is $CACHE/venv.log" "As root: apt-get install python3-venv, then again: $0"
    rm -rf "$CACHE/pip"
}

# install_package EXTRA: the log is pip.log in the cache.
install_package() {
    "$VENV/bin/python" -m pip install --disable-pip-version-check -e "$REPO$1" >"$CACHE/pip.log" 2>&1
}

# prepare_plyvel: LevelDB's Python binding has ready-made wheels for some Python versions only; elsewhere it is compiled.
prepare_plyvel() {
    say "python: there is no ready-made plyvel (LevelDB) for $("$VENV/bin/python" -V); compiling it needs g++ and libleveldb-dev"
    if [ "$(id -u)" = 0 ] && have apt-get; then
        say "python: installing g++, libleveldb-dev and python3-dev"
        logged "$CACHE/apt.log" apt-get -q update && logged "$CACHE/apt.log" env DEBIAN_FRONTEND=noninteractive \
            apt-get -q -y --no-install-recommends install g++ libleveldb-dev python3-dev && return 0
    fi
    fail "plyvel cannot be compiled here" \
        "As root: apt-get install g++ libleveldb-dev python3-dev, then again: $0" \
        "Or use Python 3.11 or 3.12, for which it need not be compiled: PYTHON=python3.11 $0"
}

# ensure_python run|dev: dev adds what the tests, the type checker and the linter need.
ensure_python() {
    local mode="$1" python extra="" want have_stamp="" stamp="$VENV/mysqlraft-stamp"
    python="$(pick_python)" || exit 1
    want="$("$python" -c 'import hashlib, pathlib, sys
print(hashlib.sha256(pathlib.Path(sys.argv[1]).read_bytes() + sys.version.encode()).hexdigest())' "$REPO/pyproject.toml") $REPO"
    [ -f "$stamp" ] && have_stamp="$(cat "$stamp")"
    if [ "$have_stamp" = "$want dev" ] || [ "$have_stamp" = "$want $mode" ]; then
        say "python: $VENV is up to date"
        return 0
    fi
    # What was asked for once stays: a demo after a test run must not take the tests' packages away.
    case "$have_stamp" in *" dev") mode=dev ;; esac
    [ "$mode" = dev ] && extra="[dev]"
    # Another Python, a directory that was moved or copied, one left half made: begin anew.
    if [ "$("$VENV/bin/python" -c 'import pip, sys; print(sys.version, sys.prefix)' 2>/dev/null)" != \
        "$("$python" -c 'import sys; print(sys.version, sys.argv[1])' "$VENV")" ]; then
        make_venv "$python"
    fi
    say "python: installing mysqlraft$extra and the packages it needs"
    if ! install_package "$extra"; then
        if grep -qiE 'leveldb/|failed.*(wheel|build).*plyvel' "$CACHE/pip.log"; then
            prepare_plyvel
            install_package "$extra"
        else
            false
        fi || {
            tail -n 15 "$CACHE/pip.log" | sed 's/^/setup:   | /' >&2
            fail "pip cannot install them; the log is $CACHE/pip.log" \
                "The first set-up needs the Python package index, or a mirror of it named in pip's own configuration." \
                "Check the network and any proxy (https_proxy), then again: $0"
        }
    fi
    printf '%s %s\n' "$want" "$mode" >"$stamp"
}
