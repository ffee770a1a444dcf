"""Flags and status variables of statements: carried, or an error that names them."""

from __future__ import annotations

import struct

import pytest

from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.events import HEADER, EventType, query
from mysqlraft.binlog.session_context import SessionContext, session_context
from mysqlraft.mysql.connection import StatementError
from mysqlraft.replication.statement_session import prepare
from mysqlraft.sandbox.servers import Engine, Server
from tests.binlog.tap import events


def flags(bits: int) -> bytes:
    return b"\0" + bits.to_bytes(4, "little")


def contexts(server: Server, *statements: str) -> list[SessionContext]:
    """Of the statements that are in the binlog."""
    found = []
    for event in events(server, *statements):
        if event[4] == EventType.QUERY:
            status = query(event[HEADER:]).status
            found.append(session_context(status, 7, mariadb=server.engine == "mariadb"))
    return found


@pytest.mark.parametrize("mariadb", [False, True])
def test_a_flag_or_variable_that_is_not_known_is_named(mariadb: bool) -> None:
    with pytest.raises(BinlogError, match="flags 0x80000000, unknown"):
        session_context(flags(1 << 31), 0, mariadb=mariadb)
    with pytest.raises(BinlogError, match="status variable 99, unknown"):
        session_context(b"\x63\0\0", 0, mariadb=mariadb)
    with pytest.raises(BinlogError, match="cut short"):
        session_context(b"\x0b\x04roo", 0, mariadb=mariadb)


def test_mariadbs_own_flags_mean_nothing_to_mysql() -> None:
    with pytest.raises(BinlogError, match="flags 0x1000000, unknown"):
        session_context(flags(1 << 24), 0, mariadb=False)


def test_what_newer_mariadbs_say() -> None:
    """Both halves of an ALTER in two events, and the collations that character sets stand for."""
    maps = b"\x83\x02" + struct.pack("<HHHH", 45, 2304, 33, 2048)
    for halves in (b"\x82\x02", b"\x82\x04" + bytes(8), b"\x82\x08" + bytes(8)):
        found = session_context(halves + maps, 0, mariadb=True)
        assert found.variables["character_set_collations"] == [(45, 2304), (33, 2048)]


def test_an_alter_in_two_events(server: Server, engine: Engine) -> None:
    if engine == "mysql" or server.installation.version < (10, 8):
        return
    contexts(server, "CREATE DATABASE s", "CREATE TABLE s.t (a INT PRIMARY KEY)")
    assert len(contexts(server, "SET binlog_alter_two_phase = 1", "ALTER TABLE s.t ADD b INT")) == 2


def test_every_setting_that_a_server_writes_is_read(server: Server, engine: Engine) -> None:
    settings = {
        "foreign_key_checks": 0,
        "unique_checks": 0,
        "sql_auto_is_null": 1,
        "explicit_defaults_for_timestamp": 0,
        "auto_increment_increment": 3,
        "auto_increment_offset": 2,
        "lc_time_names": 4,
        "time_zone": "+05:00",
        "collation_database": 8,
        "collation_server": 8,
        "collation_connection": 224,
    }
    if engine == "mariadb":
        settings |= {"check_constraint_checks": 0, "sql_if_exists": 1}
    else:
        settings |= {"default_collation_for_utf8mb4": 45, "sql_require_primary_key": 1}
    variables = [f"{name} = {value!r}" for name, value in settings.items()]
    (found,) = contexts(
        server,
        "CREATE DATABASE d",
        "USE d",
        f"SET {', '.join(variables)}",
        "CREATE TABLE t (id INT PRIMARY KEY, at TIMESTAMP DEFAULT '2024-01-01 12:00:00')",
    )[1:]
    assert settings.items() <= found.variables.items()
    assert found.variables["timestamp"].startswith("7.")


def test_the_invoker_of_a_statement(server: Server) -> None:
    (found,) = contexts(server, "CREATE DATABASE d", "CREATE VIEW d.v AS SELECT 1")[1:]
    assert found.invoker == ("root", "localhost")


class _Session:
    """Remembers what it was to set."""

    mariadb = True

    def __init__(self, version: str) -> None:
        self.version = version
        self.statements: list[bytes] = []

    def run(self, statements: list[bytes]) -> None:
        self.statements += statements

    def query(self, statement: str) -> list[tuple[object, ...]]:
        if statement == "SHOW CHARACTER SET":
            return [("utf8mb4", "", "", 4)]
        if statement.startswith("SHOW COLUMNS"):
            return [("FULL_COLLATION_NAME",)]
        return [(self.version,)] if "VERSION()" in statement else [(2304, "utf8mb4_uca1400_ai_ci", "utf8mb4")]


def test_what_older_and_newer_mariadbs_may_be_told() -> None:
    """The variables that only some of them have, or let a session set."""
    settings = {}
    for version in ("10.6.8-MariaDB", "10.6.9-MariaDB", "11.4.3-MariaDB"):
        session = _Session(version)
        prepare(session, "", {"explicit_defaults_for_timestamp": 0, "character_set_client": 45})  # type: ignore[arg-type]
        (statement,) = session.statements
        settings[version] = statement.decode()
        assert "default_storage_engine = _utf8mb4 0x" in settings[version]
        assert "character_set_client = _utf8mb4 0x" in settings[version]
    assert ["explicit_defaults" in each for each in settings.values()] == [False, True, True]
    assert ["character_set_collations = ''" in each for each in settings.values()] == [False, False, True]
    session = _Session("11.4.3-MariaDB")
    prepare(session, "", {"character_set_collations": [(2304, 2304)]})  # type: ignore[arg-type]
    assert b"utf8mb4=utf8mb4_uca1400_ai_ci".hex() in session.statements[0].decode()


@pytest.mark.parametrize("context", [{"character_set_client": 9999}, {"a = 1; DROP TABLE t": 1}])
def test_settings_that_no_server_has(context: dict[str, object]) -> None:
    with pytest.raises(StatementError):
        prepare(_Session("11.4.3-MariaDB"), "", context)  # type: ignore[arg-type]
