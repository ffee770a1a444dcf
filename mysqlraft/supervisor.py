"""The replica process, as the consensus process sees it: started, fed, listened to, restarted.

One `Supervisor` lives as long as the daemon. Each replica process it starts gets a `_Feed`: committed entries in, as
far as the replica gives credit, and proposals out. A process that ends by itself comes back after a pause that doubles
up to `MAX_PAUSE`; one that ends with `EXIT_STOPPED` (somebody has to mend something) does not, until a reload. Nor does
one that has got nowhere since it ended in the same way before, and before that (`mysqlraft.failures`). However it ends,
the status has a state and a reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from mysqlraft.admin.status import State
from mysqlraft.applied import Applied
from mysqlraft.config import Config
from mysqlraft.failures import Failures
from mysqlraft.ipc import EXIT_ALONE, EXIT_STOPPED, Channel, Say
from mysqlraft.raft.entry import Entry, EntryKind
from mysqlraft.raft.node import Node
from mysqlraft.raft.store import Compacted, StoreError
from mysqlraft.skips import Skips

logger = logging.getLogger(__name__)

MIN_PAUSE, MAX_PAUSE = 0.2, 30.0
LONG_LIFE = 60.0
"""Seconds after which a replica that had nothing left to do has shown that it can go on."""

SILENT_AFTER = 5.0
"""Seconds after which what a silent replica has reported is not true any more; it reports every `BEAT_SECONDS`."""
END_AFTER = 15.0
"""Seconds of silence after which a replica process is killed: it hangs."""
START_WITHIN = 60.0
"""The same before its first message: a busy machine takes a while to load a program."""
_COUNT_SECONDS = 0.5

STOP_SECONDS = 8.0
"""How long a replica may take to finish what it does when it is asked to stop."""

LAST_WORDS_SECONDS = 1.0
"""How long after the end of one stream what comes by the other is waited for."""

BATCH_BYTES = 1 << 20
"""Entries sent in one message, and read from the log in one go."""

HOLD_SECONDS = 0.02
"""A replica hears at most so late that its proposals are committed. It only counts them: a message for each would cost
more than it is worth."""


class Supervisor:
    """Keeps a replica process running."""

    def __init__(self, config: Config, node: Node, skips: Skips) -> None:
        self.config = config
        self._node = node
        self._skips = skips
        self._process: asyncio.subprocess.Process | None = None
        self._feed: _Feed | None = None
        self._report: dict[str, Any] = {}
        self._state = State.STARTING
        self._reason = "the replica process is starting"
        self._restarts = 0
        self._last_session = 0
        self._last_applied = 0
        self._reached: dict[str, Any] = {}
        """How far apply and capture have got, as replica processes have said; what each of them enters into the log
        itself when it starts does not count."""
        self._stopping = False
        self._held = ""
        self._again = asyncio.Event()
        self._applied = Applied()
        self._news = asyncio.Event()
        """Set, and replaced, at each report."""

    @property
    def status(self) -> dict[str, Any]:
        """What the replica said last, with the state and reason that are true now."""
        reported = self._feed is not None and "state" in self._report
        age = self._feed.silent if self._feed is not None and self._feed.begun else 0.0
        found = {
            **self._report,
            "state": self._report["state"] if reported else self._state.value,
            "reason": self._report["reason"] if reported else self._reason,
            "age": age,
            "restarts": self._restarts,
            "skipped": self._skips.indices,
            "pid": self._process.pid if self._process is not None else None,
        }
        if age > SILENT_AFTER:
            reason = f"the replica process has not reported for {age:.0f} s"
            found |= {"state": State.RETRYING.value, "reason": reason, "lag_seconds": None}
        return found

    async def run(self) -> None:
        """Starts the replica process again and again, until `stop`."""
        pause = MIN_PAUSE
        failures = Failures()
        while True:
            started = time.monotonic()
            self._again.clear()
            if self._held:
                self._state, self._reason = State.STOPPED, self._held
                await self._again.wait()
                if self._stopping:
                    return
                continue
            try:
                status, why = await self._one()
            except OSError as error:  # no memory, no more processes or files: it may pass
                status, why = None, f"the replica process cannot be started: {error}"
            if self._stopping:
                return
            if self._again.is_set():  # a reload asked for the end
                pause, failures = MIN_PAUSE, Failures()
                continue
            said = why or self._report.get("reason") or ""
            if status == EXIT_STOPPED:
                self._state, self._reason = State.STOPPED, said
                await self._again.wait()
                continue
            self._restarts += 1
            how = said if status is None else f"the replica process {_ended(status)}" + (f" ({said})" if said else "")
            healthy = self._caught_up and time.monotonic() - started > LONG_LIFE
            hopeless = failures.failed(f"{status} {said}", dict(self._reached), healthy=healthy) and status is not None
            if hopeless:
                self._state = State.STOPPED
                self._reason = (
                    f"{how}, {failures.in_a_row} times in a row, and got nowhere in between. Its log says more. Mend "
                    "what it names and reload (SIGHUP): then it is started again"
                )
                logger.error("replica process not started again reason=%r", self._reason)
                await self._again.wait()
                failures = Failures()
                continue
            pause = MIN_PAUSE if failures.in_a_row == 1 else min(pause * 2, MAX_PAUSE)
            self._state, self._reason = State.RETRYING, f"{how}; it is started again"
            logger.warning("replica process ended status=%s restart_in=%.1fs said=%r", status, pause, said)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._again.wait()

    @property
    def _caught_up(self) -> bool:
        """Whether nothing was left to do, as the last report says."""
        report = self._report
        return (
            report.get("state") == State.RUNNING
            and report["applied"] >= self._node.commit_index
            and not report["pending"]
            and not (report.get("capture_details") or {}).get("lag_seconds")
        )

    async def reload(self, config: Config) -> None:
        """Starts the replica process again, with this configuration."""
        self.config = config
        self._again.set()
        await self._end()

    async def hold(self, reason: str) -> None:
        """No replica process runs while there is a reason for it to be held; "" lets it go."""
        if bool(reason) is not bool(self._held):
            self._again.set()
            self._held = reason
            await self._end()
        self._held = reason

    async def wait_applied(self, index: int) -> None:
        """Until the server holds everything up to `index`."""
        await self._applied.wait(index)

    async def wait_report(self, is_it: Callable[[dict[str, Any]], bool]) -> None:
        """Until the status is one of these."""
        while not is_it(self.status):
            await self._news.wait()

    async def stop(self) -> None:
        """Lets the replica process finish what it does, and ends it."""
        self._stopping = True
        self._again.set()
        await self._end()

    async def _end(self) -> None:
        process, feed = self._process, self._feed
        if process is None or feed is None:
            return
        feed.channel.say(Say.STOP)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            logger.warning("replica process does not stop, killing it pid=%d", process.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def _one(self) -> tuple[int, str]:
        """One life of the replica process: its exit status, and why it had to end, if that is known here.

        Raises:
            OSError: it cannot be started.
        """
        control, control_there = socket.socketpair()
        log, log_there = socket.socketpair()
        self._report = {}
        self._state, self._reason = State.STARTING, "the replica process is starting"
        with control_there, log_there:
            # A new interpreter, not a fork: a fork would share the event loop, the database's lock and every socket.
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "mysqlraft.replication.replica",
                str(control_there.fileno()),
                str(log_there.fileno()),
                pass_fds=[control_there.fileno(), log_there.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
            )
        logger.info("replica process started pid=%d", self._process.pid)
        feed = self._feed = _Feed(self._node, self._applied, self._on_status, self._on_session)
        try:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: feed.channel, sock=control)
            await loop.create_connection(lambda: feed.log.channel, sock=log)
            source, text = str(self.config.source), self.config.yaml
            feed.channel.say(Say.START, source, text, self._last_session, self._last_applied, self._skips.lists)
            if self._stopping or self._held:  # since it was started: there was nobody to tell yet
                feed.channel.say(Say.STOP)
            watching = asyncio.create_task(self._end_when_silent(feed, self._process))
            try:
                await feed.run()
            finally:
                watching.cancel()
            await feed.last_words()
            # The end of one stream is that of both: a replica that still hears one would go on without the other.
            feed.close()
            async with asyncio.timeout(STOP_SECONDS):
                return await self._process.wait(), feed.why
        except TimeoutError:
            self._process.kill()
            return await self._process.wait(), feed.why or "it did not end when its streams had"
        finally:
            feed.close()
            self._applied.detach()
            self._feed = None
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
            self._process = None

    async def _end_when_silent(self, feed: _Feed, process: asyncio.subprocess.Process) -> None:
        """Kills a process that hangs. Its silence is counted, not measured: what this process itself was kept from
        hearing, while it was stopped or the machine slept, does not count."""
        while feed.silent < (END_AFTER if feed.begun else START_WITHIN):
            await asyncio.sleep(_COUNT_SECONDS)
            feed.silent += _COUNT_SECONDS
        feed.why = f"it had not reported for {feed.silent:.0f} s, and was killed"
        logger.error("replica process is silent, killing it pid=%d seconds=%.0f", process.pid, feed.silent)
        with contextlib.suppress(ProcessLookupError):
            process.kill()

    def _on_status(self, report: dict[str, Any]) -> None:
        if (report["state"], report["reason"]) != (self._report.get("state"), self._report.get("reason")):
            logger.info("replication state=%s reason=%r", report["state"], report["reason"])
        self._report = report
        self._last_applied = max(self._last_applied, report.get("applied") or 0)
        self._reached |= {key: report[key] for key in ("worked", "capture") if report.get(key)}
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _on_session(self, session: int) -> None:
        self._last_session = max(self._last_session, session)


class _Feed:
    """The traffic with one replica process: its proposals and reports here, the log in `_LogFeed`."""

    def __init__(self, node: Node, applied: Applied, on_status: Any, on_session: Any) -> None:
        self._silent = asyncio.Event()
        """Set when the control stream has ended."""
        self.channel = Channel(self._received, self._control_closed)
        self.log = _LogFeed(node, applied, self._closed)
        self._node = node
        self._on_status = on_status
        self._on_session = on_session
        self._end = asyncio.Event()
        self.silent = 0.0
        """Seconds since the last message on this stream, as far as they were counted."""
        self.begun = False
        """Whether there has been one."""
        self._session = 0
        self._sequence = 0
        self._held = 0
        self._hold_at: asyncio.TimerHandle | None = None
        self.why = ""
        """Why this process has closed a stream, or what the replica's last words were."""

    async def run(self) -> None:
        """Until the replica's end of a stream is closed."""
        unwatch = self._node.watch_commits(self._committed)
        try:
            await self._end.wait()
        finally:
            unwatch()
            if self._hold_at is not None:
                self._hold_at.cancel()
            await self.log.end()

    def close(self) -> None:
        self.channel.close()
        self.log.channel.close()

    async def last_words(self) -> None:
        """Waits for what the replica has said before its end, which may have been noticed on the other stream."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await self._silent.wait()

    def _control_closed(self, why: str) -> None:
        self._silent.set()
        self._closed(why)

    def _closed(self, why: str) -> None:
        self.why = self.why or why
        self._end.set()

    def _received(self, message: list[Any]) -> None:
        self.silent, self.begun = 0.0, True
        match message:
            case [Say.BEAT]:
                pass
            case [Say.PROPOSE, session, sequence, payload]:
                if session != self._session:
                    self._session, self._held = session, 0
                self._sequence = sequence
                self._on_session(session)
                self._node.propose(session, sequence, payload)
            case [Say.STATUS, report]:
                self._on_status(report)
            case [Say.ENDS, why]:
                self.why = self.why or why
            case _:
                self.channel.close(f"it sent an unknown message of type {message[:1]!r:.40}")

    def _committed(self) -> None:
        self.log.push()
        if self._hold_at is None and self._sequence - self._node.outstanding_proposals != self._held:
            self._hold_at = asyncio.get_running_loop().call_later(HOLD_SECONDS, self._hold)

    def _hold(self) -> None:
        """Says up to which proposal the log holds them."""
        self._hold_at = None
        self._held = self._sequence - self._node.outstanding_proposals
        self.channel.say(Say.HELD, self._session, self._held)


class _LogFeed:
    """Committed entries for one replica process, as they come and as far as there is credit."""

    def __init__(self, node: Node, applied: Applied, closed: Callable[[str], None]) -> None:
        self.channel = Channel(self._received, closed)
        self._node = node
        self._applied = applied
        self._next = 0
        self._credit = 0
        self._fetching: set[asyncio.Task[None]] = set()

    async def end(self) -> None:
        for task in self._fetching:
            task.cancel()
        await asyncio.gather(*self._fetching, return_exceptions=True)

    def push(self) -> None:
        """Sends what has been committed since; a bounded piece of it: the loop has other things to do, too."""
        node = self._node
        if not 0 < self._next <= node.commit_index or self._credit <= 0:
            return
        try:
            entries = [_plain(entry) for entry in node.committed_entries(self._next, min(self._credit, BATCH_BYTES))]
        except StoreError as error:
            self._fail(error)
            return
        self._next = entries[-1][0] + 1
        self._credit -= sum([len(entry[4]) for entry in entries])
        self.channel.say(Say.ENTRIES, entries)
        if self._next <= node.commit_index:
            asyncio.get_running_loop().call_soon(self.push)

    def _received(self, message: list[Any]) -> None:
        match message:
            case [Say.CREDIT, more]:
                self._credit += more
                self.push()
            case [Say.WANT, first, credit]:
                self._next, self._credit = first, credit
                self._applied.attach(lambda index: self.channel.say(Say.REACH, index))
                self.push()
            case [Say.REACHED, index]:
                self._applied.reached(index)
            case [Say.FETCH, first, last]:
                task = asyncio.get_running_loop().create_task(self._fetch(first, last))
                self._fetching.add(task)
                task.add_done_callback(self._fetched)
            case _:
                self.channel.close(f"it sent an unknown message of type {message[:1]!r:.40}")

    async def _fetch(self, first: int, last: int) -> None:
        """Answers with as many entries as fit; the replica asks for the rest."""
        try:
            # After a restart it takes a leader to know again what is committed.
            await self._node.wait_committed(last)
            # Of a single entry no more than itself is read.
            wanted = self._node.committed_entries(first, BATCH_BYTES if last > first else 1)
            entries = [_plain(entry) for entry in wanted if entry.index <= last]
            self.channel.say(Say.FETCHED, entries, None)
        except StoreError as error:
            self.channel.say(Say.FETCHED, [], unreadable(error))

    def _fetched(self, task: asyncio.Task[None]) -> None:
        self._fetching.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """The log cannot be read, or the node is gone: the replica has nothing to work on."""
        if not isinstance(error, ConnectionError):
            logger.error("the replica process cannot be fed reason=%r", str(error))
        self.channel.close(f"the log cannot be read: {unreadable(error)}")


def unreadable(error: BaseException) -> str:
    """Why entries of the log cannot be had, and what to do about it."""
    if not isinstance(error, Compacted):
        return str(error)
    return (
        f"{error}: the tables of this site's server are from before that (raft.log_keep says how much is kept). Let "
        "its daemon use a server that has more of the log, or load this site anew from another; then reload (SIGHUP)"
    )


def _plain(entry: Entry) -> tuple[int, int, int, int, bytes]:
    """What a `LogEntry` is made of."""
    if entry.kind is EntryKind.DATA:
        return (entry.index, entry.origin, entry.session, entry.sequence, entry.payload)
    return (entry.index, 0, 0, 0, entry.payload)


def _ended(status: int) -> str:
    """How the replica process ended, for people."""
    if status < 0:
        return f"was killed by {_signal(-status)}"
    return {EXIT_ALONE: "was cut off", 0: "ended"}.get(status, f"ended with status {status}")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
