"""Finds the database server programs: those of the machine, else those that deploy/setup.sh put into the cache."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Engine = Literal["mysql", "mariadb"]
ENGINES: Final[tuple[Engine, ...]] = ("mysql", "mariadb")
MINIMUM: Final[dict[Engine, tuple[int, int, int]]] = {"mysql": (8, 0, 0), "mariadb": (10, 6, 0)}

_NAMES: Final = {"mysql": ("mysqld",), "mariadb": ("mariadbd", "mysqld")}
_SYSTEM_DIRECTORIES: Final = ("/usr/sbin", "/usr/local/sbin", "/usr/libexec")


class ServerNotFound(Exception):
    """No usable server program of a wanted kind."""


def cache_directory() -> Path:
    """Where servers and data directory templates are kept between runs."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "mysqlraft"


@dataclass(frozen=True)
class Installation:
    """One server program and what it takes to run it."""

    engine: Engine
    version: tuple[int, int, int]
    program: Path
    basedir: Path
    """The directory that holds share/, lib/ and the like."""
    private: bool
    """Whether it was unpacked into the cache: then its compiled-in paths lead nowhere."""
    loader: tuple[str, ...] = ()
    """The dynamic loader to run it by, with arguments; empty to run it directly."""

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))

    @property
    def plugin_dir(self) -> Path | None:
        """Where loadable plugins are, if not where the program looks by itself."""
        return next(self.basedir.glob("lib/*/plugin"), None) if self.private else None

    def command(self, program: Path | None = None) -> list[str]:
        """The start of the command line that runs the server, or another program of the same installation."""
        return [*self.loader, str(program or self.program)]

    def tool(self, *names: str) -> list[str] | None:
        """The command line of a client program (`mysqlbinlog`, `mariadb-dump`), the first found of several names."""
        for name in names:
            for directory in (self.basedir / "bin", self.program.parent):
                if (directory / name).is_file():
                    return self.command(directory / name)
        return None

    def shared(self, *names: str) -> Path:
        """A file of the server's share directory, the first found of several names. Raises FileNotFoundError."""
        for name in names:
            for share in ("share/mysql", "share/mariadb", "share"):
                path = self.basedir / share / name
                if path.exists():
                    return path
        raise FileNotFoundError(f"{' or '.join(names)} is not below {self.basedir / 'share'}")


def find_servers(*engines: Engine) -> dict[Engine, Installation]:
    """Finds one server of each of `engines` (all kinds, if none is named).

    Raises ServerNotFound, saying what to do, if one of them is missing.
    """
    found: dict[Engine, Installation] = {}
    for engine in engines or ENGINES:
        installation = find_server(engine)
        if installation is None:
            wanted = ".".join(map(str, MINIMUM[engine]))
            raise ServerNotFound(
                f"no {engine} server, version {wanted} or later, on the PATH or in {cache_directory() / 'servers'}: "
                "run deploy/setup.sh, which finds or fetches one"
            )
        found[engine] = installation
    return found


def find_server(engine: Engine) -> Installation | None:
    """The server of this kind to use, or None."""
    for candidate in _candidates(engine):
        version = _version(candidate)
        if version is not None and version >= MINIMUM[engine]:
            return Installation(
                engine, version, candidate.program, candidate.basedir, candidate.private, candidate.loader
            )
    return None


def _candidates(engine: Engine) -> Iterator[Installation]:
    unknown = (0, 0, 0)
    for name in _NAMES[engine]:
        for directory in (*os.environ.get("PATH", "").split(os.pathsep), *_SYSTEM_DIRECTORIES):
            program = Path(directory) / name
            if directory and os.access(program, os.X_OK) and not program.is_dir():
                # resolve(): /usr/local/bin/mysqld may be a link into the real installation.
                basedir = program.resolve().parent.parent
                yield Installation(engine, unknown, program, basedir, False, _unconfined(program))
    prefix = cache_directory() / "servers" / engine
    if (prefix / "complete").is_file():
        for name in _NAMES[engine]:
            program = prefix / "usr/sbin" / name
            if program.is_file():
                yield Installation(engine, unknown, program, prefix / "usr", True, _private_loader(prefix))


def _private_loader(prefix: Path) -> tuple[str, ...]:
    """Runs a program of another distribution release: with that release's own C library and loader."""
    loader = next(
        (p for d in ("usr/lib64", "lib64", "usr/lib", "lib") for p in (prefix / d).glob("**/ld-linux*")), None
    )
    if loader is None:
        return ()
    directories = [p for d in ("usr/lib", "lib") for p in (prefix / d).glob("*-linux-gnu*") if p.is_dir()]
    return (str(loader), "--library-path", ":".join(map(str, directories)))


def _unconfined(program: Path) -> tuple[str, ...]:
    """On Ubuntu, AppArmor confines /usr/sbin/mysqld to the system's own data directory.

    The rule goes by the path of the executed file: run by the loader, the server may use ours.
    """
    profile = str(program.resolve()).strip("/").replace("/", ".")
    if not (Path("/etc/apparmor.d") / profile).exists() or (Path("/etc/apparmor.d/disable") / profile).exists():
        return ()
    loader = next((p for d in ("/lib64", "/lib") for p in Path(d).glob("ld-linux*")), None)
    return () if loader is None else (str(loader),)


def _version(candidate: Installation) -> tuple[int, int, int] | None:
    """The version that the program tells, if it runs and is of the kind that the candidate claims."""
    try:
        answer = subprocess.run(
            [*candidate.command(), "--no-defaults", "--version"],
            capture_output=True, text=True, timeout=30, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"Ver (\d+)\.(\d+)\.(\d+)", answer)
    if match is None or ("MariaDB" in answer) != (candidate.engine == "mariadb"):
        return None
    return int(match[1]), int(match[2]), int(match[3])
