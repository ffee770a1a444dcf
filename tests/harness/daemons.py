"""Daemons without a server: enough for how they start, end and fail."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

MINIMAL = """\
cluster:
  id: test
  sites:
    - {id: 1, name: tokyo, address: "127.0.0.1:7450"}
    - {id: 2, name: oslo, address: "127.0.0.1:7460"}
site: tokyo
data_dir: data
insecure: true
mysql: {user: root}
"""
"""The least that a file has to say, for two sites that nobody starts."""

MYSQLRAFT = (sys.executable, "-m", "mysqlraft")


def settings(directory: Path, **changes: Any) -> Path:
    """The file of a cluster of one site, whose server does not answer."""
    written: dict[str, Any] = {
        "cluster": {"id": "test", "sites": [{"id": 1, "name": "tokyo", "address": f"127.0.0.1:{free_port()}"}]},
        "site": "tokyo",
        "data_dir": str(directory / "log"),
        "insecure": True,
        "admin": {"listen": f"127.0.0.1:{free_port()}"},
        "mysql": {"socket": str(directory / "absent.sock"), "user": "root"},
        **changes,
    }
    path = directory / "tokyo.yaml"
    path.write_text(yaml.safe_dump(written))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(path: Path, *, program: Sequence[str] = MYSQLRAFT, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The daemon, killed at the end. `program` stands for the command `mysqlraft`."""
    command = [*program, "run", "--config", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}) as daemon:
        try:
            yield daemon
        finally:
            daemon.kill()


def ended(path: Path, *, program: Sequence[str] = MYSQLRAFT) -> tuple[int, str]:
    """Exit status and log of a daemon that ends by itself; without a traceback."""
    with running(path, program=program) as daemon:
        _, errors = daemon.communicate(timeout=30)
    print(errors)
    assert "Traceback" not in errors
    return daemon.returncode, errors
