"""How deploy/setup.sh comes to its servers on other distributions than this machine's: with an apt that pretends."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[2] / "deploy/lib"

APT_GET = """\
case "$1" in
indextargets) cat "$FAKE/targets" ;;
-q)
    dir="$(dirname "$APT_CONFIG")"
    if [ "$2" = update ]; then
        cat "$dir/sources.list" >>"$FAKE/read"
        ! grep -q unreachable "$dir/sources.list"
    else
        shift 4
        echo "$@" >>"$FAKE/fetched"
        touch "$dir/archives/all.deb"
    fi ;;
esac
"""
# What is on offer stands in a file named after the suite that was read last.
APT_CACHE = """\
suite="$(awk 'END { print $(NF - 1) }' "$(dirname "$APT_CONFIG")/sources.list")"
grep -qx "$2" "$FAKE/offer-${suite%-updates}" 2>/dev/null && echo "  Candidate: 1.2-3" || echo "  Candidate: (none)"
"""
UBUNTU = (
    "http://archive.ubuntu.com/ubuntu/ {0} main|Ubuntu",
    "http://archive.ubuntu.com/ubuntu/ {0} universe|Ubuntu",
    "http://archive.ubuntu.com/ubuntu/ {0}-updates main|Ubuntu",
)
DEBIAN = ("http://deb.debian.org/debian/ {0} main|Debian", "http://deb.debian.org/debian/ {0}-updates main|Debian")
FOREIGN = ("https://download.docker.com/linux/x {0} stable|Docker", "https://apt.example.com/x anyversion main|Example")


class Machine:
    """A pretended machine: what its apt has, and what was done with it."""

    def __init__(self, directory: Path, distribution: str, codename: str, targets: tuple[str, ...]) -> None:
        self.directory, self.distribution, self.codename = directory, distribution, codename
        programs = directory / "bin"
        programs.mkdir()
        for name, text in {
            "apt-get": APT_GET,
            "apt-cache": APT_CACHE,
            "apt-config": "",
            "dpkg": 'mkdir -p "$3/usr/sbin"',
        }.items():
            (programs / name).write_text(f"#!/bin/bash\n{text}")
            (programs / name).chmod(0o755)
        (directory / "targets").write_text("".join(f"{target.format(codename)}\n" for target in targets))

    def offers(self, suite: str, *packages: str) -> None:
        (self.directory / f"offer-{suite}").write_text("".join(f"{package}\n" for package in packages))

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Runs a function of the library as on that machine, which has no server of its own."""
        script = f"""
            for part in common apt servers; do . {LIBRARY}/$part.sh; done
            os_release() {{ case "$1" in ID) echo {self.distribution} ;; *) echo {self.codename} ;; esac; }}
            installed_server() {{ return 1; }}
            {command}
        """
        environment = {
            "PATH": f"{self.directory}/bin:/usr/bin:/bin",
            "FAKE": str(self.directory),
            "XDG_CACHE_HOME": str(self.directory / "cache"),
            "HOME": str(self.directory),
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], env=environment, capture_output=True, text=True, check=False
        )
        print(done.stderr, end="")
        return done

    def told(self, file: str) -> str:
        path = self.directory / file
        return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    ("distribution", "codename", "targets", "offers", "engine", "fetched"),
    [
        ("ubuntu", "noble", UBUNTU, {"noble": "-8.0"}, "mysql", "-8.0"),
        ("ubuntu", "resolute", UBUNTU, {"resolute": "-8.4"}, "mysql", "-8.4"),
        ("ubuntu", "noble", (*FOREIGN, *UBUNTU), {"noble": ""}, "mariadb", ""),
        ("ubuntu", "jammy", UBUNTU, {"jammy": "-10.6"}, "mariadb", "-10.6"),
        ("debian", "bookworm", (*DEBIAN, *FOREIGN), {"bookworm": ""}, "mariadb", ""),
        ("debian", "bookworm", (*DEBIAN, *FOREIGN), {"sid": ""}, "mysql", ""),
        ("debian", "bookworm", ("http://deb.debian.org/debian/ {0} main|$(ORIGIN)",), {"sid": ""}, "mysql", ""),
    ],
)
def test_the_package_that_is_fetched(
    tmp_path: Path,
    distribution: str,
    codename: str,
    targets: tuple[str, ...],
    offers: dict[str, str],
    engine: str,
    fetched: str,
) -> None:
    machine = Machine(tmp_path, distribution, codename, targets)
    for suite, version in offers.items():
        machine.offers(suite, f"{engine}-server-core{version}", f"{engine}-client-core{version}")
    minimum = "8.0.0" if engine == "mysql" else "10.6.0"
    assert machine.run(f"ensure_server {engine} {minimum}").returncode == 0
    assert machine.told("fetched") == f"{engine}-server-core{fetched} {engine}-client-core{fetched}\n"
    read = machine.told("read")
    assert "docker" not in read, "another's repository, signed by another key"
    assert "example" not in read
    assert (" sid main" in read) == ("sid" in offers)
    again = machine.run(f"ensure_server {engine} {minimum}")
    assert again.returncode == 0
    assert machine.told("read") == read, "a second run needs no network"


def test_one_kind_will_do_for_the_demo(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "ubuntu", "noble", UBUNTU)
    machine.offers("noble", "mysql-server-core-8.0", "mysql-client-core-8.0")
    assert machine.run("ensure_servers any").returncode == 0
    done = machine.run("ensure_servers all")
    assert done.returncode == 1
    assert "no server for: mariadb" in done.stderr
    assert "apt-get install mysql-server" in done.stderr


def test_an_archive_that_cannot_be_reached(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "debian", "bookworm", ("http://unreachable.example/debian/ {0} main|Debian",))
    done = machine.run("ensure_servers any")
    assert done.returncode == 1
    assert "cannot read them" in done.stderr
    assert "MYSQLRAFT_APT_MIRROR" in done.stderr
