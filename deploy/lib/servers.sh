# Database servers for the demo and the tests: what is installed, else the distribution's own package, else (MySQL on
# Debian, whose stable suite has none) the one of Debian's unstable suite. Packages are unpacked into the cache, not
# installed: no root is needed, no system service starts, and a machine's own databases are left alone.
# mysqlraft/sandbox/servers.py looks in the same places in the same order. Sourced, never run.
# shellcheck shell=bash

# server_version PROGRAM...: "mysql 9.7.4" or "mariadb 10.11.19"; nothing if it does not run.
server_version() {
    "$@" --no-defaults --version 2>/dev/null | awk '
        match($0, /Ver [0-9]+\.[0-9]+\.[0-9]+/) {
            print (($0 ~ /MariaDB/) ? "mariadb" : "mysql"), substr($0, RSTART + 4, RLENGTH - 4); exit }'
}

# version_at_least HAVE WANTED
version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# installed_server ENGINE MINIMUM: says which installed server would be used; fails if there is none.
installed_server() {
    local engine="$1" minimum="$2" name dir found
    for name in "${engine}d" mysqld; do
        for dir in ${PATH//:/ } /usr/sbin /usr/local/sbin /usr/libexec; do
            [ -x "$dir/$name" ] || continue
            found="$(server_version "$dir/$name")"
            [ "${found% *}" = "$engine" ] || continue
            if version_at_least "${found#* }" "$minimum"; then
                say "$engine: the installed $dir/$name, version ${found#* }"
                return 0
            fi
            say "$engine: $dir/$name is version ${found#* }; $minimum or later is needed, so another is fetched"
        done
    done
    return 1
}

# fetched_server ENGINE: says which server is in the cache; fails if there is none.
fetched_server() {
    [ -f "$CACHE/servers/$1/complete" ] || return 1
    say "$1: $(cat "$CACHE/servers/$1/complete") in $CACHE/servers/$1"
}

# first_package APT-DIR NAME...: the first that is on offer.
first_package() {
    local dir="$1" name
    shift
    for name in "$@"; do
        [ -n "$(apt_version "$dir" "$name")" ] && printf '%s' "$name" && return 0
    done
}

# fetch_server ENGINE
fetch_server() {
    local engine="$1" target="$CACHE/servers/$1" work="$CACHE/servers/.$1.partial" suites="configured"
    local suite server client version
    if ! have apt-get || ! have dpkg; then
        say "$engine: not installed, and this is no Debian or Ubuntu machine, so nothing can be fetched"
        return 1
    fi
    [ "$engine" = mysql ] && [ "$(os_release ID)" = debian ] && suites="configured sid"
    # The tests have to pass with the MariaDB of other suites as well (docs/contributing.md).
    [ "$engine" = mariadb ] && suites="${MYSQLRAFT_MARIADB_SUITE:-$suites}"
    rm -rf "$work"
    for suite in $suites; do
        say "$engine: reading the package lists ($suite suites of this machine's mirror)"
        rm -rf "$work"
        if ! apt_private "$work/apt" "$suite"; then
            say "$engine: cannot read them"
            continue
        fi
        # MySQL's carry a version on Ubuntu, MariaDB's on Ubuntu 22.04.
        server="$(first_package "$work/apt" "$engine"-server-core{,-8.4,-8.0,-10.6})"
        client="$(first_package "$work/apt" "$engine"-client-core{,-8.4,-8.0,-10.6})"
        if [ -z "$server" ] || [ -z "$client" ]; then
            say "$engine: no such package in them"
            continue
        fi
        version="$server $(apt_version "$work/apt" "$server")"
        say "$engine: downloading and unpacking $version with all that it needs (20 to 65 MB)"
        if apt_unpack "$work/apt" "$work/root" "$server" "$client"; then
            printf '%s\n' "$version" >"$work/root/complete"
            mkdir -p "$CACHE/servers"
            rm -rf "$target"
            mv "$work/root" "$target"
            rm -rf "$work"
            return 0
        fi
    done
    return 1
}

# ensure_server ENGINE MINIMUM: fails if there is no such server in the end.
ensure_server() { installed_server "$1" "$2" || fetched_server "$1" || { fetch_server "$1" && fetched_server "$1"; }; }

# ensure_servers all|any: every engine, or at least one.
ensure_servers() {
    local missing=()
    ensure_server mysql 8.0.0 || missing+=(mysql)
    ensure_server mariadb 10.6.0 || missing+=(mariadb)
    [ "${#missing[@]}" = 0 ] && return 0
    if [ "$1" = any ] && [ "${#missing[@]}" = 1 ]; then
        say "${missing[0]}: not to be had; going on without it"
        return 0
    fi
    fail "no server for: ${missing[*]}" \
        "Put it on the PATH yourself (as root: apt-get install mysql-server, or apt-get install mariadb-server)," \
        "or make the machine's package mirror reachable and run this again." \
        "A mirror other than the one in the apt sources: MYSQLRAFT_APT_MIRROR=URL $0"
}
