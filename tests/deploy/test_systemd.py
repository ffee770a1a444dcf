"""The systemd unit: systemd itself finds nothing wrong with it, and it fits what the daemon does."""

from __future__ import annotations

import configparser
import os
import re
from pathlib import Path

from mysqlraft import config, daemon
from mysqlraft.sandbox.installation import cache_directory
from tests.harness.tools import run_tool

REPOSITORY = Path(__file__).parents[2]
UNIT = REPOSITORY / "deploy/systemd/mysqlraft@.service"


def analyze(*arguments: str) -> str:
    """systemd-analyze, with the standard units beside it when it comes from the cache. Returns all that it prints."""
    units = cache_directory() / "tools/systemd"
    own = [str(units / "usr/lib/systemd/system"), str(units / "lib/systemd/system")]
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": ":".join([*own, ""])}
    done = run_tool("systemd-analyze", *arguments, environment=environment)
    print(f"systemd-analyze {' '.join(arguments)}: exit status {done.returncode}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def unit() -> configparser.RawConfigParser:
    """The unit's sections. Of a key that stands there twice, the last."""
    parser = configparser.RawConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser


def test_verify() -> None:
    # An unknown key or section is only a warning to systemd, so silence is asked for.
    assert str(UNIT) not in analyze("verify", str(UNIT))


def test_verify_notices_a_mistake(tmp_path: Path) -> None:
    broken = tmp_path / UNIT.name
    broken.write_text(UNIT.read_text().replace("NoNewPrivileges", "NoNewPriviliges"))
    assert "NoNewPriviliges" in analyze("verify", str(broken))


def test_exposure_is_small() -> None:
    # 0 is best; systemd calls more than 5 MEDIUM, and an ordinary service without hardening gets 9.6 (UNSAFE).
    printed = analyze("security", "--offline=yes", "--threshold=20", str(UNIT))
    match = re.search(r"exposure level for \S+: (\S+)", printed)
    assert match is not None
    print(f"exposure level {match[1]}")


def test_unit_fits_the_daemon() -> None:
    service = unit()["Service"]
    assert service["Type"] == "notify"
    assert service["KillMode"] == "mixed"
    assert service["Restart"] == "always"
    assert service["ExecReload"].endswith("-HUP $MAINPID")
    assert "mysqlraft run --config /etc/mysqlraft/%i.yaml" in service["ExecStart"]
    # The documented data_dir is the state directory.
    example = config.load(REPOSITORY / "configs/example.yaml")
    assert str(example.data_dir) == "/var/lib/" + service["StateDirectory"].replace("%i", example.site)
    # The one exit status after which starting again does not help.
    hopeless = [line.split()[0] for line in daemon.EXIT_CODES.splitlines() if "would not help" in line]
    assert service["RestartPreventExitStatus"].split() == hopeless
    assert float(service["WatchdogSec"]) >= 10
