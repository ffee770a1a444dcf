"""README's installation, as far as it can be run without root: on a file system as Debian leaves it."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
STUBS = ("systemctl", "systemd-sysusers")


def commands(text: str, begins: str) -> list[str]:
    """The shell commands of the indented lines (or comments) that begin so."""
    return [line for line in re.findall(r"^(?:#  | {3}) (\S.*)$", text, re.MULTILINE) if line.startswith(begins)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Debian's /etc without `sysusers.d`, which no package has made yet; programs that need root do nothing."""
    for directory in ("etc/systemd/system", "usr/local/bin", "bin"):
        (tmp_path / directory).mkdir(parents=True)
    for program in STUBS:
        (tmp_path / "bin" / program).symlink_to("/bin/true")
    return tmp_path


def run(root: Path, command: str, given: str = "", directory: Path = REPOSITORY) -> None:
    """Runs a command below `root`, without changes of owners."""
    command = re.sub(r"(?<= )/(?=etc|usr|opt)", f"{root}/", command).replace(" -o mysqlraft", "")
    environment = {"PATH": f"{root}/bin:/usr/bin:/bin"}
    subprocess.run(["bash", "-euc", command], cwd=directory, env=environment, input=given, text=True, check=True)


@pytest.mark.parametrize("file", ["README.md", "deploy/systemd/mysqlraft@.service"])
def test_what_is_installed_goes_where_it_is_looked_for(root: Path, file: str) -> None:
    text = (REPOSITORY / file).read_text()
    for command in commands(text, "install -m 644 deploy") + commands(text, "install -D"):
        run(root, command)
    for made, source in (("system/mysqlraft@.service", "mysqlraft@.service"), ("", "mysqlraft.sysusers")):
        where = root / "etc/systemd" / made if made else root / "etc/sysusers.d/mysqlraft.conf"
        assert where.read_text() == (REPOSITORY / "deploy/systemd" / source).read_text()


def test_keys_and_passwords_are_the_daemons_alone(root: Path, tmp_path: Path) -> None:
    text = (REPOSITORY / "README.md").read_text()
    for file in ("ca.pem", "tokyo.pem", "tokyo.key"):
        (tmp_path / file).write_text(file)
    for command in [*commands(text, "systemctl daemon-reload && install -d"), *commands(text, "install -m 644 ca.pem")]:
        run(root, command, directory=tmp_path)
    private = commands(text, "install -m 400 -o mysqlraft ")
    for command in private:
        run(root, command, "a password\n", tmp_path)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (root / "etc/mysqlraft").iterdir()}
    assert modes == {"ca.pem": 0o644, "tokyo.pem": 0o644, "tokyo.key": 0o400, "tokyo.password": 0o400}
    assert (root / "etc/mysqlraft/tokyo.password").read_text() == "a password\n"


def test_the_packages_that_plyvel_needs_are_those_that_set_up_installs() -> None:
    needed = {"g++", "libleveldb-dev", "python3-dev"}
    assert needed < set(" ".join(commands((REPOSITORY / "README.md").read_text(), "apt-get install")).split())
    assert needed < set((REPOSITORY / "deploy/lib/python.sh").read_text().split())
