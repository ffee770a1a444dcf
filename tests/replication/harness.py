"""Sites in one process: real servers, the project's capture and apply, and a log in memory between them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import pymysql
from pymysql.cursors import Cursor

from mysqlraft.binlog.place import Place
from mysqlraft.raft.configuration import Configuration, Server
from mysqlraft.replication.apply import Applier, ApplyState
from mysqlraft.replication.capture import Capture, CaptureState, UnitBroken, position_now
from mysqlraft.replication.entry import Flavour, Payload, PayloadKind, decode, kind_of
from mysqlraft.replication.filters import TableFilter
from mysqlraft.replication.pending_rows import PendingRows
from mysqlraft.replication.state import LogEntry, ReplicationState, Step
from mysqlraft.sandbox import servers as sandbox

TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class LoggedEntry:
    index: int
    origin: int
    session: int
    sequence: int
    payload: bytes


def founders(sites: Iterable[int]) -> LoggedEntry:
    """The first entry of every log: who is in the cluster."""
    servers = [Server(site, f"site{site}", f"127.0.0.1:{7450 + site}") for site in sites]
    return LoggedEntry(1, 0, 0, 0, Configuration(servers).encode())


class SharedLog:
    """A log that commits what is proposed at once."""

    def __init__(self, sites: int) -> None:
        self.entries = [founders(range(1, sites + 1))]
        self.changed = threading.Condition()

    def append(self, origin: int, session: int, sequence: int, payload: bytes) -> int:
        with self.changed:
            self.entries.append(LoggedEntry(len(self.entries) + 1, origin, session, sequence, payload))
            self.changed.notify_all()
            return len(self.entries)

    def of_kind(self, kind: PayloadKind) -> list[int]:
        """Log indices of the sites' payloads of this kind."""
        return [entry.index for entry in self.entries if entry.origin and kind_of(entry.payload) is kind]


class SiteLink:
    """One site's end of the log, as `mysqlraft.ipc.Link` is in the daemon.

    Between `hold` and `release` proposals wait in ``kept``. Marks are among them, at any time.
    """

    def __init__(self, log: SharedLog, site: int) -> None:
        self.log, self.site = log, site
        self._next = 1
        self._order = threading.Lock()  # What is proposed during a release comes after all that was kept.
        self._held = False
        self.kept: list[tuple[int, int, bytes]] = []
        self.limit: int | None = None
        self.fetched = 0
        """How many entries were read again."""

    def propose(self, session: int, sequence: int, payload: bytes) -> bool:
        with self._order:
            if self._held:
                self.kept.append((session, sequence, payload))
            else:
                self.log.append(self.site, session, sequence, payload)
        return True

    def spoil(self, session: int, payload: bytes) -> None:
        """These bytes take the next sequence of the session."""
        with self._order:
            last = max(e.sequence for e in self.log.entries if (e.origin, e.session) == (self.site, session))
            self.log.append(self.site, session, last + 1, payload)

    @property
    def units_kept(self) -> int:
        """Whole local transactions held back."""
        payloads = [decode(payload) for _, _, payload in list(self.kept)]
        return sum(payload.last if payload.kind is PayloadKind.PART else len(payload.units) for payload in payloads)

    @property
    def statements_kept(self) -> int:
        """Local statements held back."""
        return sum(kind_of(payload) is PayloadKind.DDL for _, _, payload in list(self.kept))

    def hold(self) -> None:
        """From now on proposals wait."""
        with self._order:
            self._held = True

    def release(self) -> None:
        """Hands over what was held back."""
        with self._order:
            self._held = False
            for proposal in self.kept:
                self.log.append(self.site, *proposal)
            self.kept.clear()

    def want(self, first: int) -> None:
        self._next = first

    awaited = 0

    def reached(self, index: int) -> None:
        self.awaited = 0

    def take(self, timeout: float | None = None) -> Sequence[LogEntry]:
        """The next entries, up to `limit` if that is set."""
        with self.log.changed:
            if not self._available():
                self.log.changed.wait(timeout)
            found = self._available()[:100]
            self._next += len(found)
            return found

    def _available(self) -> list[LoggedEntry]:
        end = len(self.log.entries) if self.limit is None else min(self.limit, len(self.log.entries))
        return self.log.entries[self._next - 1 : end]

    def fetch(self, first: int, last: int) -> Iterator[LogEntry]:
        for entry in self.log.entries[first - 1 : last]:
            self.fetched += 1
            yield entry


class SiteUnderTest:
    """A site: its server, and threads that capture and apply. A context manager; `crash` and `start` in between."""

    def __init__(
        self,
        number: int,
        server: sandbox.Server,
        log: SharedLog,
        *,
        capture: dict[str, Any] | None = None,
        account: tuple[str, str] | None = None,
        **options: Any,
    ) -> None:
        """``options`` go to `Applier`, ``capture`` to `Capture`. ``account``: the daemon's, with its password."""
        self._account = account or (server.user, server.password)
        self.number, self.server, self.log = number, server, log
        self.link = SiteLink(log, number)
        self._options = options
        self._capture_options: dict[str, Any] = {"replicated": TableFilter(), "mark_seconds": 0.2} | (capture or {})
        self._pending = PendingRows()
        self._applier: Applier | None = None
        self._capture: Capture | None = None
        self._threads: list[threading.Thread] = []
        self._session = 0
        self.crashed: list[BaseException] = []
        self._unfinished: list[Place] = []
        self.void: list[str] = []
        """Of each session that is void, of whichever site: why."""

    @property
    def capture(self) -> Capture | None:
        return self._capture

    @property
    def applier(self) -> Applier:
        assert self._applier is not None
        return self._applier

    @property
    def capturing(self) -> bool:
        """Whether capture reads the binlog."""
        return self._capture is not None and bool(self._capture.status()["connected"])

    @property
    def captured(self) -> int:
        """How many transactions capture has read since it started."""
        return 0 if self._capture is None else int(self._capture.status()["transactions"])

    def arguments(self) -> dict[str, Any]:
        return {
            "unix_socket": str(self.server.socket),
            "user": self._account[0],
            "password": self._account[1],
            "connect_timeout": 5,
            "ssl_disabled": True,
        }

    def start(self) -> None:
        """Starts capture and apply. What apply has done is known to the server, and everything else to the log."""
        self._applier = Applier(
            site=self.number,
            connect=self.arguments(),
            log=self.link,
            dump_server_id=900 + self.number,
            look_ahead_server_id=700 + self.number,
            pending=self._pending,
            on_ready=self._ready,
            on_step=self._stepped,
            **self._options,
        )
        self._run(self._applier.run)

    def _run(self, target: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                target()
            except BaseException as error:
                self.crashed.append(error)

        thread = threading.Thread(target=guarded, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _ready(self, state: ReplicationState) -> None:
        self._session = max(self._session, state.sessions.last(self.number)[0]) + 1
        known = state.origins[self.number]
        base, here, done = known.base, known.resume, known.done
        if here is None:
            with closing(pymysql.connect(**self.arguments(), autocommit=True)) as connection:
                here = position_now(connection)
            base, done = state.index, (here.file, here.offset)
        flavour = Flavour.MARIADB if self.server.engine == "mariadb" else Flavour.MYSQL
        opening = Payload(PayloadKind.OPEN, flavour, base, here, done)
        self.link.propose(self._session, 1, opening.encode())

    def spoil(self, payload: bytes) -> None:
        """Has capture propose these bytes next, out of turn."""
        self.link.spoil(self._session, payload)

    def _stepped(self, entry: LogEntry, step: Step, state: ReplicationState) -> None:
        if step.void:
            self.void.append(step.void)
            if entry.origin == self.number:
                self._reopen(state)
        if (entry.origin, entry.session, entry.sequence) != (self.number, self._session, 1) or not step.accepted:
            return
        origin = state.origins[self.number]
        assert origin.resume is not None
        self._capture = Capture(
            self.arguments(),
            self.link,  # type: ignore[arg-type]
            CaptureState(origin.resume, origin.done, origin.base),
            session=self._session,
            server_id=800 + self.number,
            scan_server_id=600 + self.number,
            pending=self._pending,
            unfinished=tuple(self._unfinished),
            server_now=lambda: self.applier.watch.server,
            **self._capture_options,
        )
        self._run(partial(self._capturing, self._capture))

    def _capturing(self, capture: Capture) -> None:
        try:
            capture.run()
        except UnitBroken as error:
            if error.unfinished is not None:
                self._unfinished.append(error.unfinished)
            self.applier.ask(self._reopen)

    def _reopen(self, state: ReplicationState) -> None:
        """As `Replica` does it, but that the old capture proposes in vain for a while."""
        if self._capture is not None:
            self._capture.stop()
        self._ready(state)

    def stop(self) -> None:
        """Ends both threads."""
        self.applier.stop()
        if self._capture is not None:
            self._capture.stop()
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()
        self._threads.clear()
        self._capture = None

    def execute(self, *statements: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """Runs statements as the application; the rows of the last one."""
        with closing(self.server.connect(database)) as connection, connection.cursor() as cursor:
            return run(cursor, *statements)

    def wait_applied(self, index: int | None = None, timeout: float = TIMEOUT) -> None:
        """Waits until the tables hold the log up to `index` (default: as long as it is now)."""
        wanted = len(self.log.entries) if index is None else index
        wait_for(lambda: self.applier.status.index >= wanted, timeout, self)

    def wait_stopped(self) -> str:
        """Waits until apply has stopped, and returns why."""
        wait_for(lambda: self.applier.status.state is ApplyState.STOPPED, TIMEOUT, self)
        return self.applier.status.reason

    def __repr__(self) -> str:
        status = self._applier.status if self._applier is not None else None
        return f"site {self.number}: {status}, log {len(self.log.entries)}, {self.crashed}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.stop()


def run(cursor: Cursor, *statements: str) -> list[tuple[Any, ...]]:
    """Executes statements one by one; the rows of the last one."""
    for statement in statements:
        cursor.execute(statement)
    return list(cursor.fetchall())


def wait_for(condition: Callable[[], bool], timeout: float, what: object) -> None:
    """Waits until the condition holds; an AssertionError that shows `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what!r}"
        time.sleep(0.005)


def settle(sites: Sequence[SiteUnderTest], timeout: float = TIMEOUT) -> None:
    """Waits until everything that was committed anywhere is in the log and applied everywhere.

    Each site writes a row of its own into `mysqlraft_settle.marks` (at the first call the schema is made everywhere).
    """
    marks = []
    for site in sites:
        here = site.execute("SELECT COALESCE(MAX(n), 0) + 1 FROM settle.marks WHERE site = " + str(site.number))[0][0]
        site.execute(f"INSERT INTO settle.marks VALUES ({site.number}, {here})")
        marks.append((site.number, here))

    def settled() -> bool:
        return all(
            (number, n) in site.execute("SELECT site, n FROM settle.marks") for site in sites for number, n in marks
        )

    wait_for(settled, timeout, sites)
    for site in sites:
        site.wait_applied(timeout=timeout)


SETTLE = (
    "CREATE DATABASE IF NOT EXISTS settle",
    "CREATE TABLE IF NOT EXISTS settle.marks (site INT, n INT, PRIMARY KEY (site, n))",
)


def checksum(site: SiteUnderTest, table: str) -> tuple[Any, ...]:
    """CHECKSUM TABLE and all rows of a table."""
    return site.execute(f"CHECKSUM TABLE {table}")[0][1], sorted(site.execute(f"SELECT * FROM {table}"), key=repr)
