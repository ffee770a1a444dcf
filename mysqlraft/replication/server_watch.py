"""Is the server there, and what keeps the session that apply writes through from going on?

An answer may take as long as it takes: a statement may run for an hour, a row may be locked. So a session's silence
says nothing by itself, and no timeout may end it. A second connection asks the server every second, with a timeout:

- no answer at all: the server hangs, or the way to it is closed. `ServerWatch.silent` counts the seconds; nothing else
  is done, for the session may go on once the server does.
- the session is unknown there, or idle while we wait (for longer where threads are pooled): its connection is dead (a
  way that lost it, an address that has moved to another server). It is ended here, and apply connects again. The
  session is known by the lock that fences it, which no other server and no other connection holds.
- the session is not at the server that a new connection leads to: the address has moved, and the old server lives. The
  same is done; capture finds out by ``ServerWatch.server``.
- the session waits for a row: the status says whose. Where the application keeps it for longer than `yield_after`
  seconds, the connections that hold it are ended (KILL), which rolls them back.
- rows would be replayed otherwise than they have to be (MariaDB): the session is ended, and no other one opened.
- the session waits for a place between rows, whose locks do not queue: a dam is made before the table (`table_dam`).

Asked of the server's own tables: PROCESS to see who holds a lock (MySQL: `performance_schema`, too), CONNECTION_ADMIN
(MariaDB: CONNECTION ADMIN) to end others. Without them nothing is ended, and the status says why. LOCK TABLES: for the
dam.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pymysql
from pymysql.connections import Connection

from mysqlraft.mysql import opening
from mysqlraft.mysql.connection import Connect, Session
from mysqlraft.replication.apply_session import FENCE, LOCK_WAIT, REPLAY_QUERY, replays_otherwise
from mysqlraft.replication.table_dam import TableDam

log = logging.getLogger(__name__)

ASK_SECONDS = 1.0
INSIST_SECONDS = 0.1
"""How often the server is asked while apply has been kept from going on for too long."""
ANSWER_SECONDS = 5.0
LOOK_AFTER = 2.0
"""Seconds for which apply waits for one answer before it is asked why."""
TELL_AFTER = 5.0
"""Seconds of waiting for a row, or for the server, before it shows in the site's state."""
BUSY_AFTER = 30.0
"""Seconds for which one answer may be waited for before that shows: a server whose disk is full says nothing."""
_DENIED = (1044, 1045, 1142, 1227)
_NO_SUCH_THREAD, _NOT_OWNER = 1094, 1095
_QUIET = "Sleep"
_DEAD_AFTER, _DEAD_AFTER_IN_POOL = 0.9, 30.0
"""Seconds for which a server has to say that a session is idle whose answer is waited for: an answer may be on its way.
Where threads are pooled, a statement that waits for a thread, behind those of others, looks alike."""

_HOLDERS_MYSQL = """
SELECT DISTINCT b.trx_mysql_thread_id, b.trx_started, TIMESTAMPDIFF(SECOND, b.trx_started, NOW()), 1
FROM information_schema.innodb_trx r
JOIN performance_schema.data_lock_waits w ON w.requesting_engine_transaction_id = r.trx_id
JOIN performance_schema.data_locks l ON l.engine_lock_id = w.blocking_engine_lock_id AND l.lock_status = 'GRANTED'
JOIN information_schema.innodb_trx b ON b.trx_id = w.blocking_engine_transaction_id
WHERE r.trx_mysql_thread_id = {}"""
_HOLDERS_MARIADB = """
SELECT DISTINCT b.trx_mysql_thread_id, b.trx_started, TIMESTAMPDIFF(SECOND, b.trx_started, NOW()) AS seconds,
b.trx_id <> 0 AS certain
FROM information_schema.innodb_trx r
JOIN information_schema.innodb_lock_waits w ON w.requesting_trx_id = r.trx_id
JOIN information_schema.innodb_trx b ON b.trx_id = w.blocking_trx_id
WHERE r.trx_mysql_thread_id = {}
AND (b.trx_requested_lock_id IS NULL OR b.trx_requested_lock_id <> w.blocking_lock_id)
AND (b.trx_id <> 0 OR b.trx_rows_locked > 0)
ORDER BY certain DESC, seconds DESC"""
"""The holders of the lock that the session waits for: thread, begin of its transaction, seconds since then, whether it
is certain. Sessions that wait in front of it in the queue are left out: they do not hold the lock yet. MariaDB gives
the id 0 to every transaction that has written nothing: there the holder may be any of them that has locked rows. The
oldest comes first."""

_GAP_MYSQL = """
SELECT CONCAT('`', REPLACE(l.object_schema, '`', '``'), '`.`', REPLACE(l.object_name, '`', '``'), '`')
FROM information_schema.innodb_trx r
JOIN performance_schema.data_locks l ON l.engine_lock_id = r.trx_requested_lock_id
WHERE r.trx_mysql_thread_id = {} AND l.lock_mode LIKE '%INSERT_INTENTION%'"""
_GAP_MARIADB = """
SELECT l.lock_table FROM information_schema.innodb_trx r
JOIN information_schema.innodb_locks l ON l.lock_id = r.trx_requested_lock_id
WHERE r.trx_mysql_thread_id = {} AND (l.lock_mode LIKE '%GAP%' OR l.lock_data LIKE 'supremum%')"""
"""The table in which the session waits for a place between rows. It takes no other locks on gaps. At an end of an index
MariaDB does not call it a gap."""
_TABLE = re.compile(r"(?:`(?:[^`]|``)*`\.)`(?:[^`]|``)*`")
"""Its name, without what says which partition."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A connection whose transaction holds a row that apply waits for."""

    thread: int
    account: str
    began: str
    seconds: int
    statement: str
    certain: bool

    def __str__(self) -> str:
        who = f"connection {self.thread} ({self.account})" if self.thread else "a prepared XA transaction"
        return f"{who}, which began {self.seconds} s ago"


class ServerWatch:
    """Watches in a thread of its own between `start` and `stop`; its attributes may be read from any thread.

    ``session``: the one that apply writes through, set by apply. ``waits_for``: whose row it waits for, "" if nobody's.
    ``yielded``: how many connections of the application were ended. ``server``: which server the address led to when
    it was last tried, as `opening.WHICH_SERVER` has it; "" if it has not answered yet.
    """

    def __init__(self, connect: Connect, yield_after: float | None) -> None:
        """``connect`` opens a connection whose answers are waited for `ANSWER_SECONDS` at most. ``yield_after``: after
        how many seconds of waiting the application yields; None: never."""
        self.session: Session | None = None
        self.runs_statement = False
        """Whether what apply waits for is a statement, which may take any time. Set by apply."""
        self.waits_for = ""
        self.yielded = 0
        self._ended: set[int] = set()
        """Threads that were ended in this wait: rolling back may take them a while."""
        self.server = ""
        self._connect = connect
        self._yield_after = yield_after
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection: Connection[Any] | None = None
        self._opened = 0.0
        self._looked_for: Session | None = None
        """The session that was looked for over this connection."""
        self._mariadb = False
        self._answered = time.monotonic()
        self._waits_since: float | None = None
        self._failing_since: float | None = None
        self._held_since: dict[tuple[int, str], float] = {}
        """Since when the transactions that apply waits for were seen to hold what it waits for: by thread and
        beginning."""
        self._idle: tuple[float | None, float] | None = None
        """Since when the answer is waited for that the server knows nothing of, and since when it has said so."""
        self._told = ""
        self._dam: TableDam | None = None
        self._dam_for = 0
        self._no_dam_before = 0.0
        self._gap_since: tuple[float | None, float] | None = None
        """Since when the answer is waited for that waits for a gap, and since when it has been seen to do so."""
        self._succeeded = 0

    @property
    def silent(self) -> float:
        """For how many seconds the server has not answered; a few tenths are nothing."""
        return max(0.0, time.monotonic() - self._answered)

    @property
    def busy(self) -> float:
        """For how many seconds apply has waited for the answer that it waits for now, unless to a statement."""
        session = self.session
        since = session.waiting_since if session is not None else None
        return 0.0 if since is None or self.runs_statement else time.monotonic() - since

    def failed(self, *, deadlock: bool) -> None:
        """An attempt of apply's came to nothing because of a lock. From the thread of apply. Where nobody was seen to
        hold a row it was a table's: who holds rows is not to be ended the sooner for that."""
        began = time.monotonic() if deadlock else None
        self._failing_since = self._failing_since or self._waits_since or began

    def succeeded(self) -> None:
        """What apply had to do is done. From the thread of apply."""
        self._failing_since = self._waits_since = None
        self._succeeded += 1

    def start(self) -> None:
        self._answered = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the watching; does not wait for it."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(INSIST_SECONDS if self._insists or self._dam is not None else ASK_SECONDS):
            try:
                self._look_at_dam()
                self._look()
                self._answered = time.monotonic()
            except (pymysql.err.MySQLError, OSError) as error:
                if isinstance(error, pymysql.err.MySQLError) and _is_answer(error):
                    self._answered = time.monotonic()
                self._tell(f"the server cannot be asked: {error}")
                self.waits_for = ""
                self._disconnect()
            except Exception:  # the watch only reports: its own fault must end neither apply nor capture
                log.exception("the server cannot be watched")
                self._disconnect()
        if self._dam is not None:
            with suppress(pymysql.err.MySQLError, OSError):
                self._dam.end(self._query)
        self._disconnect()

    @property
    def _insists(self) -> bool:
        """Whether apply has waited for rows for too long, over several attempts; or for one gap, for which MariaDB
        counts the time anew with each transaction that lets go of it."""
        if self._yield_after is None:
            return False
        now, session, gap, since = time.monotonic(), self.session, self._gap_since, self._failing_since
        if gap is not None and session is not None and session.waiting_since == gap[0] and now - gap[1] >= LOCK_WAIT:
            return True
        return since is not None and now - since >= self._yield_after

    def _look(self) -> None:
        if self._connection is not None and time.monotonic() - self._opened > opening.RENEW_SECONDS:
            kept, self._opened = self._connection, time.monotonic()
            self._connection = opening.renewed(kept, self._connect)
            if self._connection is not kept:
                self._look_at_server()
        session = self.session
        since = session.waiting_since if session is not None else None
        waited = 0.0 if since is None else time.monotonic() - since
        if session is None or not (waited >= LOOK_AFTER or (since is not None and self._insists)):
            self.waits_for, self._idle = "", None
            self._ended.clear()
            self._held_since.clear()
            self._query("SELECT 1")  # now it is known which kind of server it is
            settings = self._query(REPLAY_QUERY)[0] if self._mariadb else None
            if settings is not None and session is not None and (why := replays_otherwise(*settings)):
                log.warning("apply's connection was ended: %s", why)
                session.abort()
            if session is not None and session is not self._looked_for:
                self._looked_for = session
                if not self._is_here(session) and session is self.session:
                    log.warning("apply's connection is not one of the server that the address leads to now: ended")
                    session.abort()
            return
        if self._is_dead(session, since):
            if session.waiting_since == since:
                log.warning("apply has waited %.0f s for a connection that the server does not work on: ended", waited)
                session.abort()
            return
        if waited >= TELL_AFTER and self._dam is None and time.monotonic() >= self._no_dam_before:
            self._look_for_gap(session, since)
        holders = self._holders(session)
        self._waits_since = since if holders else None
        now = time.monotonic()
        self._held_since = {
            transaction: self._held_since.get(transaction, now)
            for transaction in ((holder.thread, holder.began) for holder in holders)
        }
        self.waits_for = str(holders[0]) if holders and waited >= TELL_AFTER else ""
        if self._yield_after is None or session.waiting_since != since:
            return
        for holder in holders:
            # How long apply has waited does not matter: it may be behind many who hold the row for a moment each.
            held = now - self._held_since[holder.thread, holder.began]
            if (held >= self._yield_after or self._insists) and self._end(holder) and not holder.certain:
                break  # perhaps it was this one

    def _look_for_gap(self, session: Session, since: float | None) -> None:
        """Makes a dam if the session waits for a place between rows."""
        done = self._succeeded
        found = self._seen((_GAP_MARIADB if self._mariadb else _GAP_MYSQL).format(session.id))
        if not found:
            self._gap_since = None  # the same answer may wait for rows by now, whose holders have their own time
        for (name,) in found:
            if table := _TABLE.match(str(name)):
                if self._gap_since is None or self._gap_since[0] != since:
                    self._gap_since = since, time.monotonic()
                self._dam_for = done
                self._dam = TableDam(self._connect, table[0], lambda: self._succeeded == done)

    def _look_at_dam(self) -> None:
        """Takes the dam away once apply has done what it waited with."""
        dam = self._dam
        if dam is None:
            return
        if not dam.stands:
            self._dam = None
            if self._succeeded == self._dam_for:
                # The account may not make one, or somebody waits behind it who holds what apply needs.
                self._no_dam_before = time.monotonic() + TELL_AFTER
                self._tell(f"the application's locks on a gap keep a row of apply's out: {dam.problem}")
        elif self._succeeded != self._dam_for:
            dam.end(self._query)

    def _is_dead(self, session: Session, since: float | None) -> bool:
        """Whether the server will never answer what the session has waited for since then."""
        if not self._is_here(session):
            return True
        asked = f"SELECT command, @@thread_handling FROM information_schema.processlist WHERE id = {session.id}"
        rows = self._query(asked)
        if not rows or rows[0][0] != _QUIET:
            self._idle = None
            return False
        now = time.monotonic()
        if self._idle is None or self._idle[0] != since:
            self._idle = since, now
        pooled = rows[0][1] != "one-thread-per-connection"
        return now - self._idle[1] >= (_DEAD_AFTER_IN_POOL if pooled else _DEAD_AFTER)

    def _is_here(self, session: Session) -> bool:
        """Whether the session is one of the server that is asked."""
        return bool(self._query(f"SELECT IS_USED_LOCK({FENCE})")[0][0] == session.id)

    def _seen(self, query: str) -> Sequence[Sequence[Any]]:
        """What the server tells of locks; nothing if it may not."""
        try:
            return self._query(query)
        except pymysql.err.MySQLError as error:
            if error.args[0] not in _DENIED:
                raise
            self._tell(f"whom apply waits for is not to be seen: {error.args[1]}")
            return []

    def _holders(self, session: Session) -> list[Holder]:
        rows = self._seen((_HOLDERS_MARIADB if self._mariadb else _HOLDERS_MYSQL).format(session.id))
        found = []
        for thread, began, seconds, certain in rows:
            if not thread:
                found.append(Holder(0, "", str(began), int(seconds), "", True))
                continue
            known = self._query(f"SELECT user, host, info FROM information_schema.processlist WHERE id = {int(thread)}")
            user, host, info = known[0] if known else ("?", "?", None)
            if user != "system user":
                statement = str(info or "")[:200]
                found.append(Holder(int(thread), f"{user}@{host}", str(began), int(seconds), statement, bool(certain)))
        return found

    def _end(self, holder: Holder) -> bool:
        """Ends the connection; whether it could."""
        if not holder.thread:
            self._tell("a prepared XA transaction keeps a row from apply: XA RECOVER lists it")
            return False
        try:
            self._query(f"KILL CONNECTION {holder.thread}")
        except pymysql.err.MySQLError as error:
            if error.args[0] == _NO_SUCH_THREAD:
                return False
            if error.args[0] not in (*_DENIED, _NOT_OWNER):
                raise
            self.waits_for = f"{holder}, which this account may not end: {error.args[1]}"
            self._tell(f"who keeps a row from apply cannot be ended: {error.args[1]}")
            return False
        if holder.thread not in self._ended:
            self._ended.add(holder.thread)
            self.yielded += 1
            log.warning("apply waited for a row of %s: ended statement=%r", holder, holder.statement)
        return True

    def _query(self, statement: str) -> Sequence[Sequence[Any]]:
        if self._connection is None:
            self._connection, self._opened = self._connect(), time.monotonic()
            self._look_at_server()
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def _look_at_server(self) -> None:
        """Which one a new connection has led to."""
        self._looked_for = None
        self.server = str(self._query(opening.WHICH_SERVER)[0][0])
        self._mariadb = "MariaDB" in str(getattr(self._connection, "server_version", ""))

    def _tell(self, text: str) -> None:
        """Logs what is new."""
        if text != self._told:
            self._told = text
            log.warning("%s", text)

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(pymysql.err.MySQLError, OSError):
                self._connection._force_close()  # type: ignore[attr-defined]
            self._connection = None


def _is_answer(error: pymysql.err.MySQLError) -> bool:
    """Whether the error came from the server."""
    code = error.args[0] if error.args else 0
    return isinstance(code, int) and code > 0 and not 2000 <= code < 3000
