"""Initialised data directories, made once and copied for every server.

Initialising takes seconds and the result is always the same. A template belongs to one engine, version and set of
options that a data directory keeps for life; it lies in the cache, beside the generated password of its root account.
"""

from __future__ import annotations

import fcntl
import hashlib
import secrets
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mysqlraft.sandbox.installation import Installation, cache_directory
from mysqlraft.sandbox.options import Options

_FORMAT: Final = 1
"""Raised whenever a template made by an earlier version of this module will not do."""

_OPTIONS_FOR_LIFE: Final = (
    "character_set_server",
    "collation_server",
    "innodb_checksum_algorithm",
    "innodb_data_file_path",
    "innodb_page_size",
    "innodb_undo_tablespaces",
    "lower_case_table_names",
)

# What mariadb-install-db (a shell script, which cannot run by a private loader) feeds to the server.
# MariaDB 11 calls these files mariadb_....
_MARIADB_TABLES: Final = (
    "mysql_system_tables.sql",
    "mysql_performance_tables.sql",
    "mysql_system_tables_data.sql",
    "maria_add_gis_sp_bootstrap.sql",
    "mysql_sys_schema.sql",
)

_REDO_LOG_SIZE: Final = ("innodb_redo_log_capacity", "innodb_log_file_size")
_BINLOG: Final = ("log_bin", "gtid_mode", "enforce_gtid_consistency")

Secure = Callable[[Path, Options, str], None]
"""Called with a new server's directory, options to run it with and a password: gives this to the root account and lets
root in by TCP too."""


@dataclass(frozen=True)
class Template:
    """A data directory to copy, and its root account's password."""

    data: Path
    password: str

    def copy_to(self, target: Path) -> None:
        """Makes `target` a data directory of its own, on file systems that can without copying any block."""
        subprocess.run(["cp", "-a", "--reflink=auto", str(self.data), str(target)], check=True)
        # The server's identity: two servers must not share it.
        (target / "auto.cnf").unlink(missing_ok=True)


def ensure_template(installation: Installation, options: Options, secure: Secure) -> Template:
    """The template for a server with these options; makes it (some seconds) if it is not in the cache.

    Safe to call from several processes at once. Raises subprocess.CalledProcessError if the server cannot initialise.
    """
    kept = {name: options[name] for name in _OPTIONS_FOR_LIFE if name in options}
    digest = hashlib.sha256(repr((_FORMAT, sorted(kept.items()))).encode()).hexdigest()[:12]
    templates = cache_directory() / "templates"
    target = templates / f"{installation.engine}-{installation.version_text}-{digest}"
    templates.mkdir(parents=True, exist_ok=True)
    with (templates / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            work = templates / f"{target.name}.partial"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(mode=0o700)
            own = _template_options(options, work)
            _initialise(installation, own, work)
            password = secrets.token_urlsafe(12)
            secure(work, own, password)
            (work / "data" / "ibtmp1").unlink(missing_ok=True)  # 12 MB that every start makes anew
            (work / "password").write_text(password)
            work.rename(target)
    return Template(target / "data", (target / "password").read_text())


def _template_options(options: Options, work: Path) -> Options:
    """The options of the servers to come, as far as they hold for the template."""
    own: dict[str, str | None] = {name: value for name, value in options.items() if name not in _BINLOG}
    # The binlogs of the copies begin empty, and there is less to copy: the redo log grows at the first start.
    own["skip_log_bin"] = None
    own |= {name: "8M" for name in _REDO_LOG_SIZE if name in own}
    return own | {
        "datadir": str(work / "data"),
        "tmpdir": str(work),
        "socket": str(work / "server.sock"),
        "pid_file": str(work / "server.pid"),
        "log_error": str(work / "error.log"),
    }


def _initialise(installation: Installation, options: Options, work: Path) -> None:
    log = work / "initialise.log"
    # Without log_error both kinds of server write to the standard error stream, that is into our log.
    arguments = [f"--{k}" if v is None else f"--{k}={v}" for k, v in options.items() if k != "log_error"]
    arguments.insert(0, "--no-defaults")
    if installation.engine == "mysql":
        command = [*installation.command(), *arguments, "--initialize-insecure"]
        statements = b""
    else:
        # mysql_system_tables_data.sql would make accounts for the machine's name and for nobody.
        (work / "data").mkdir(mode=0o700)
        command = [*installation.command(), *arguments, "--bootstrap", "--skip-grant-tables", "--log-warnings=0"]
        # One statement ends with its line there.
        parts = [b"CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket=NULL, @skip_auth_anonymous=1;\n"]
        for name in _MARIADB_TABLES:
            parts += [installation.shared(name, name.replace("mysql", "mariadb")).read_bytes(), b"\n"]
        statements = b"".join(parts)
    with log.open("wb") as output:
        done = subprocess.run(
            command, input=statements, stdout=output, stderr=subprocess.STDOUT, timeout=300, check=False
        )
    if done.returncode != 0:
        raise RuntimeError(
            f"{installation.engine} {installation.version_text} cannot initialise a data directory "
            f"(exit status {done.returncode}); the end of {log}:\n" + log.read_text(errors="replace")[-2000:]
        )
