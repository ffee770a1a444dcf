"""The configuration file of a private server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mysqlraft.sandbox.installation import Installation
from mysqlraft.sandbox.ports import LOOPBACK

Options = Mapping[str, str | None]
"""Server options by name; '-' and '_' are the same; None is an option without a value."""


def normalised(options: Options) -> dict[str, str | None]:
    """The options with their names spelt in one way, so that a later one replaces an earlier one."""
    return {name.replace("-", "_"): value for name, value in options.items()}


def default_options(installation: Installation, directory: Path, *, port: int, server_id: int, gtid: bool) -> Options:
    """What every private server is started with: durable, row-based, and small enough for a dozen of them."""
    options: dict[str, str | None] = {
        "datadir": str(directory / "data"),
        "tmpdir": str(directory / "tmp"),
        "pid_file": str(directory / "server.pid"),
        "log_error": str(directory / "error.log"),
        "bind_address": LOOPBACK,
        "port": str(port),
        "skip_name_resolve": None,
        "secure_file_priv": "",
        "character_set_server": "utf8mb4",
        "max_connections": "100",
        "max_allowed_packet": "64M",
        # What capture requires.
        "server_id": str(server_id),
        "log_bin": "binlog",
        "binlog_format": "ROW",
        "binlog_row_image": "FULL",
        "binlog_row_metadata": "FULL",
        # The daemon's account makes the triggers and functions of other sites.
        "log_bin_trust_function_creators": "ON",
        # Durable: a killed server must come back with every transaction that it confirmed.
        "sync_binlog": "1",
        "innodb_flush_log_at_trx_commit": "1",
        # Small.
        "performance_schema": "OFF",
        "innodb_buffer_pool_size": "64M",
        "innodb_log_buffer_size": "4M",
        "innodb_read_io_threads": "2",
        "innodb_write_io_threads": "2",
        "innodb_purge_threads": "1",
        "key_buffer_size": "1M",
        "table_open_cache": "400",
        "table_definition_cache": "400",
    }
    if os.geteuid() == 0:
        # The servers refuse to run as root unless told to, and a switch to another user would undo the binding to the
        # parent process.
        options["user"] = "root"
    if installation.private:
        options |= {
            "basedir": str(installation.basedir),
            "lc_messages_dir": str(installation.shared("english").parent),
            "character_sets_dir": str(installation.shared("charsets")),
        }
        if installation.plugin_dir is not None:
            options["plugin_dir"] = str(installation.plugin_dir)
    if installation.engine == "mysql":
        options["mysqlx"] = "OFF"
        # Said in either case: the default changed from OFF to ON with MySQL 9.
        options |= dict.fromkeys(("gtid_mode", "enforce_gtid_consistency"), "ON" if gtid else "OFF")
        if installation.version >= (8, 0, 30):
            options["innodb_redo_log_capacity"] = "64M"
        else:
            options["innodb_log_file_size"] = "32M"
    else:
        options |= {"innodb_log_file_size": "64M", "log_slave_updates": "ON"}
    return options


def write_options(path: Path, options: Options) -> None:
    """Writes a file for --defaults-file."""
    lines = [name if value is None else f"{name} = {value}" for name, value in options.items()]
    path.write_text("\n".join(["[mysqld]", *lines, ""]))
