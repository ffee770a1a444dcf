# Programs that tests run: those of the machine, else unpacked into the cache from the distribution's packages, like the
# servers. tests/harness/tools.py looks in the same places. Sourced, never run.
# shellcheck shell=bash

# ensure_tool PROGRAM PACKAGE
ensure_tool() {
    local program="$1" package="$2" root="$CACHE/tools/$2" runner="$CACHE/tools/bin/$1" work="$CACHE/tools/.$2.partial"
    if "$program" --version >/dev/null 2>&1; then
        say "$program: the installed one"
        return 0
    fi
    if [ ! -x "$runner" ]; then
        say "$program: downloading and unpacking the package $package (30 to 60 MB)"
        rm -rf "$work" "$root"
        mkdir -p "$CACHE/tools/bin"
        { apt_private "$work/apt" configured && apt_unpack "$work/apt" "$work/root" "$package" && mv "$work/root" "$root"; } ||
            fail "$program is missing and cannot be fetched" "As root: apt-get install $package, then again: $0"
        rm -rf "$work"
        write_runner "$root" "$root/usr/bin/$program" >"$runner.new"
        sh "$runner.new" --version >/dev/null ||
            fail "$program does not run from $root" "As root: apt-get install $package, then again: $0"
        chmod +x "$runner.new" && mv "$runner.new" "$runner"
    fi
    say "$program: the one in $root"
}

# write_runner ROOT PROGRAM: prints a script that runs a program, or Python script, of an unpacked closure with that
# closure's own C library, loader and Python.
write_runner() {
    local root="$1" program="$2" loader libraries python=""
    loader="$(find "$root"/lib* "$root"/usr/lib* -name 'ld-linux*' 2>/dev/null | head -n 1)"
    # systemd keeps a library of its own one level down.
    libraries="$(find "$root"/{usr/,}lib -maxdepth 2 -path '*-linux-gnu*' -type d \
        \( -name '*-linux-gnu*' -o -name systemd \) -printf '%p:' 2>/dev/null)"
    echo '#!/bin/sh'
    if [ "$(head -c 2 "$program")" = '#!' ]; then
        python="$(readlink -f "$root/usr/bin/python3")"
        printf 'export PYTHONHOME="%s"\n' "$root/usr"
    fi
    printf 'exec "%s" --library-path "%s" %s "%s" "$@"\n' "$loader" "$libraries" "${python:+"\"$python\""}" "$program"
}
