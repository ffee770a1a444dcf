# Debian packages into a private directory: no root, no system package touched, no service started.
# Sourced, never run.
# shellcheck shell=bash

# apt_targets: "URI RELEASE COMPONENT" of each of the distribution's own suites in this machine's apt sources.
# Third-party repositories are left out by their release names, or, as many call theirs like the distribution's, by the
# origin in their lists: they are signed by other keys, and hold nothing that is wanted here.
apt_targets() {
    local codename
    codename="$(os_release VERSION_CODENAME)"
    # An origin that apt does not know yet, because it has no lists, stays as it is written here.
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)|$(ORIGIN)' 'Created-By: Packages' 2>/dev/null |
        awk -F '|' -v id="$(os_release ID)" '$2 == "" || $2 ~ /ORIGIN/ || tolower($2) == id { print $1 }' | sort -u |
        grep -E "^(https?|mirror[^ ]*|file|copy)://?[^ ]* (${codename:-sid}|stable|oldstable|testing|unstable|sid)(-[a-z-]+)? " || true
}

# apt_mirror: the archive that serves this machine's main suite. MYSQLRAFT_APT_MIRROR overrides it.
apt_mirror() {
    if [ -n "${MYSQLRAFT_APT_MIRROR:-}" ]; then
        printf '%s\n' "$MYSQLRAFT_APT_MIRROR"
    else
        apt_targets | awk '$2 !~ /-/ { print $1; exit }'
    fi
}

# apt_private DIR configured|SUITE: prepares DIR as the state of an apt of its own and reads the package lists of the
# machine's configured suites, or of SUITE on the same mirror. The package status is empty, so that a later download
# brings the whole closure, C library included, and does not depend on what the machine has. Fails, with the reason on
# stderr, if the lists cannot be read.
apt_private() {
    local dir="$1" suite="$2" keyring="" file options=""
    have apt-get && have dpkg || return 1
    mkdir -p "$dir/lists/partial" "$dir/archives/partial" "$dir/parts"
    : >"$dir/status"
    for file in /usr/share/keyrings/"$(os_release ID)"-archive-keyring.{gpg,pgp}; do
        [ -f "$file" ] && keyring="$file" && break
    done
    [ -n "$keyring" ] && options="[signed-by=$keyring] "
    if [ "$suite" = configured ]; then
        apt_targets | sed "s|^|deb $options|" >"$dir/sources.list"
    else
        printf 'deb %s%s %s main\n' "$options" "$(apt_mirror)" "$suite" >"$dir/sources.list"
        [ -n "$(apt_mirror)" ] || return 1
    fi
    [ -s "$dir/sources.list" ] || return 1
    # Proxies, certificates and the like stay as the machine has them; hooks that clean the system's cache do not run.
    apt-config dump | grep '^Acquire::' >"$dir/apt.conf"
    cat >>"$dir/apt.conf" <<CONF
Dir::Etc::Main "/dev/null";
Dir::Etc::Parts "$dir/parts";
Dir::Etc::SourceList "$dir/sources.list";
Dir::Etc::SourceParts "$dir/parts";
Dir::State "$dir";
Dir::State::Lists "$dir/lists";
Dir::State::Status "$dir/status";
Dir::Cache "$dir";
Dir::Cache::Archives "$dir/archives";
Dir::Log "$dir";
APT::Update::Error-Mode "any";
APT::Sandbox::User "$(id -un)";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
CONF
    logged "$dir/update.log" env APT_CONFIG="$dir/apt.conf" apt-get -q update
}

# apt_version DIR PACKAGE: the version on offer in DIR's lists, or nothing.
apt_version() {
    APT_CONFIG="$1/apt.conf" apt-cache policy "$2" 2>/dev/null | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'
}

# apt_unpack DIR TARGET PACKAGE...: downloads the packages with all they need and unpacks them below TARGET.
apt_unpack() {
    local dir="$1" target="$2" deb
    shift 2
    logged "$dir/download.log" env APT_CONFIG="$dir/apt.conf" DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y --download-only install "$@" || return 1
    mkdir -p "$target"
    for deb in "$dir"/archives/*.deb; do
        case "${deb##*/}" in
        # Scripts nobody runs here: 200 MB.
        perl_* | perl-base_* | perl-modules-* | libperl5*) continue ;;
        esac
        dpkg -x "$deb" "$target" || return 1
    done
    rm -rf "$target"/usr/share/{doc,man,locale,info,lintian,bug}
}
