"""The session that apply writes through: fenced, and set up so that it does the same on every server."""

from __future__ import annotations

import re
import time

from pymysql.constants import ER

from mysqlraft.binlog.events import APPLY_THREAD_ID
from mysqlraft.mysql.connection import Connect, Session, SessionLost, StatementError
from mysqlraft.replication.row_events import format_description

LOCK_WAIT = 60
"""Seconds to wait for a row lock of the application's. Whoever waits keeps its place in the row's queue, and what it
has written: to give way and begin again may never come to an end. `server_watch` lets it not take so long."""
METADATA_LOCK_WAIT = 10
"""Seconds to wait for a table that somebody changes. A cycle of such a lock and a row's is seen by no server: to give
way is what ends it."""
FENCE = "'mysqlraft.apply'"
_FENCE_TIMEOUT = 60.0

_RETRYABLE = frozenset(
    (
        1205,  # lock wait timeout
        1213,  # deadlock
        1020,  # row changed since it was read (MariaDB)
        1317,  # interrupted by KILL QUERY
        1969,  # max_statement_time (MariaDB)
        3024,  # max_execution_time (MySQL)
        1021,  # disk full
        1026,  # error writing a file
        1030,  # error from the storage engine
        1037,  # out of memory
        1041,  # out of memory
        1040,  # too many connections
        1114,  # table or tablespace full
        1180,  # error during COMMIT
        1206,  # lock table full
        1223,  # FLUSH TABLES WITH READ LOCK
        1290,  # read_only and the like
        1296,  # error from the storage engine, in its words
        1836,  # read-only mode
        1878,  # error writing a temporary file
        3032,  # offline mode
        3989,  # ALTER SCHEMA ... READ ONLY (MySQL)
        3675,  # disk full while a table is made (MySQL)
        2013,  # the look ahead's connection, which is none of the session's own
    )
)
_OF_THE_SYSTEM = range(1, 1000)
"""Errors of the server's with its own files and memory, as a full directory for temporary files."""
_NO_ROOM = re.compile(r"\b[Ee]rr(?:no|code):? (?:23|24|28|122|135)\b")
"""Too many open files, a full disk or quota (135: InnoDB's word for it)."""
_OF_FILES = frozenset((*range(1004, 1007), *range(1009, 1017), 1018, 1019, 1023, 1024, 1025))
"""Errors that say so in their text. In those of others there may be values of rows."""
REPLAY_QUERY = "SELECT @@global.slave_exec_mode, @@global.slave_run_triggers_for_rbr"
"""MariaDB's settings that rows are replayed under; no session has its own. MySQL's sessions do."""
_DENIED = frozenset((1044, 1045, 1142, 1143, 1227))
_NOT_OF_ROWS = _DENIED | frozenset((1153, 1197, 1534, 1598, 1730, 1782))
"""Privileges, packet and cache sizes, binlog failures: no other lane would fare better."""
_GONE = frozenset((1049, 1146))


def about_locks(error: StatementError) -> bool:
    """Whether a lock of the application's was in the way."""
    return error.code in (ER.LOCK_WAIT_TIMEOUT, ER.LOCK_DEADLOCK)


def deadlock(error: StatementError) -> bool:
    """Whether the server ended the transaction to let another one go on."""
    return error.code == ER.LOCK_DEADLOCK


def retryable(error: StatementError) -> bool:
    """Whether the same transaction may succeed later, without anybody changing the log or the table."""
    if error.code in _RETRYABLE or error.code in _OF_THE_SYSTEM:
        return True
    return error.code in _OF_FILES and _NO_ROOM.search(error.message) is not None


def denied(error: StatementError) -> bool:
    """Whether the account may not do it, or has another password now. Somebody may give it back at any time."""
    return error.code in _DENIED


def own_schema_gone(error: StatementError) -> bool:
    """Whether it is the daemon's own schema that is not there."""
    return error.code in _GONE and "mysqlraft" in error.message


def row_error(error: StatementError) -> bool:
    """Whether it is about rows that are in the table already, or missing from it."""
    return not retryable(error) and error.code not in _NOT_OF_ROWS


def replays_otherwise(exec_mode: str, triggers: str) -> str:
    """Why rows may not be replayed under these settings of a MariaDB server; "" if they may."""
    if exec_mode != "STRICT":
        return (
            f"slave_exec_mode is {exec_mode}: rows would be written over others. SET GLOBAL slave_exec_mode = 'STRICT'"
        )
    if triggers != "NO":
        return (
            f"slave_run_triggers_for_rbr is {triggers}: triggers would run again here. "
            "SET GLOBAL slave_run_triggers_for_rbr = 'NO'"
        )
    return ""


def setup(session: Session) -> None:
    """Everything that the outcome of a statement could depend on, set. Also undoes what a DDL statement set."""
    variables = [
        "sql_mode = ''",
        "time_zone = '+00:00'",
        f"pseudo_thread_id = {APPLY_THREAD_ID}",
        "autocommit = 1",
        # No COMMIT begins another transaction, or ends the session.
        "completion_type = 'NO_CHAIN'",
        "foreign_key_checks = 0",
        "unique_checks = 1",
        "sql_auto_is_null = 0",
        "timestamp = DEFAULT",
        "auto_increment_increment = 1",
        "auto_increment_offset = 1",
        f"innodb_lock_wait_timeout = {LOCK_WAIT}",
        f"lock_wait_timeout = {METADATA_LOCK_WAIT}",
        # An idle site must not lose its session.
        "wait_timeout = 31536000",
        "net_read_timeout = 600",
        "net_write_timeout = 600",
    ]
    if session.mariadb:
        # The text of every BINLOG statement would go into the binlog, too.
        variables += ["binlog_annotate_row_events = OFF", "max_statement_time = 0"]
        variables += ["check_constraint_checks = 1", "sql_if_exists = 0"]
    else:
        variables += ["binlog_rows_query_log_events = OFF"]
    statements = [
        b"SET NAMES utf8mb4",
        f"SET SESSION {', '.join(variables)}".encode(),
        # Without gap locks apply waits for, and holds up, as few of the application's transactions as possible.
        b"SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE",
        format_description(session.version, session.mariadb),
    ]
    if not session.mariadb:
        statements.append(b"SET GTID_NEXT = 'AUTOMATIC'")
    session.run(statements)


def wait_for_tables(session: Session, failures: int) -> None:
    """Lets a statement or a batch wait longer for its tables the more often it has failed, up to `LOCK_WAIT`: sessions
    that use or lock them one after the other, each for longer than it waits, would keep it out for ever. `setup` undoes
    it."""
    seconds = min(LOCK_WAIT, METADATA_LOCK_WAIT << min(failures, 10))
    session.run([f"SET SESSION lock_wait_timeout = {seconds}".encode()])


def open_session(connect: Connect) -> Session:
    """A session that nobody else of this site's daemon has, once its predecessor's is gone.

    The connection of a daemon that was killed may still have a COMMIT before it. The fence is a lock that a connection
    holds to its end: who has it reads the progress row as it will stay.

    Raises:
        SessionLost, StatementError: the server cannot be reached, or refuses, or would replay rows otherwise.
    """
    session = Session(connect)
    try:
        _fence(session)
        setup(session)
        if session.mariadb and (why := replays_otherwise(*session.query(REPLAY_QUERY)[0])):
            raise SessionLost(why)
        session.wait_patiently()
    except BaseException:
        session.close()
        raise
    return session


def _fence(session: Session) -> None:
    deadline = time.monotonic() + _FENCE_TIMEOUT
    while session.query(f"SELECT GET_LOCK({FENCE}, 0)")[0][0] != 1:
        owner = session.query(f"SELECT IS_USED_LOCK({FENCE})")[0][0]
        if owner is not None:
            try:
                session.query(f"KILL {int(owner)}")
            except StatementError as error:
                if error.code != 1094:  # it is gone already
                    raise
        if session.query(f"SELECT GET_LOCK({FENCE}, 1)")[0][0] == 1:
            return
        if time.monotonic() > deadline:
            raise SessionLost(f"connection {owner} of another daemon does not end, though it was killed")


def read_progress(session: Session) -> tuple[int, bytes]:
    """(applied, state) of the progress row; (0, nothing) if it is not there."""
    rows = session.query("SELECT applied, state FROM mysqlraft.progress WHERE id = 1")
    return (int(rows[0][0]), bytes(rows[0][1])) if rows else (0, b"")


def read_certification(session: Session) -> bytes:
    """What certification knew of tables, see `ReplicationState.dump_tables`; empty if it has not been kept yet."""
    rows = session.query("SELECT state FROM mysqlraft.certification WHERE id = 1")
    return bytes(rows[0][0]) if rows else b""
