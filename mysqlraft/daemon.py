"""The daemon: the consensus process, from its start to its end.

It owns the Raft node and its store, the admin API and, through `Supervisor`, the replica process. Signals:

    SIGTERM, SIGINT   stop: capture and apply finish what they do, leadership is handed over, everything is closed
    SIGHUP            read the configuration again; see docs/configuration.md for what each key allows
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import msgpack
import uvloop

from mysqlraft import __version__, collector, config, keys, logs, systemd
from mysqlraft.admin.access import Access
from mysqlraft.admin.actions import actions
from mysqlraft.admin.api import admin_server
from mysqlraft.admin.status import STOPPED, Row, State, cluster_status, file_difference, heard_row, own_row
from mysqlraft.binlog.place import Place
from mysqlraft.config import Config, ConfigError
from mysqlraft.divergence import Check, Watch
from mysqlraft.keys import Reload
from mysqlraft.memory import give_large_blocks_back
from mysqlraft.raft.beat import to_beat
from mysqlraft.raft.bootstrap import bootstrap
from mysqlraft.raft.configuration import Configuration, ConfigurationError, Server
from mysqlraft.raft.identity import Rival
from mysqlraft.raft.leveldb_store import LevelDBStore
from mysqlraft.raft.limits import Limits
from mysqlraft.raft.node import Node
from mysqlraft.raft.operations import NotDone, Operations, Outcome
from mysqlraft.raft.peers import Membership
from mysqlraft.raft.store import StoreError, WrongDirectory
from mysqlraft.raft.tls import Tls, TlsError
from mysqlraft.raft.tls import load as load_tls
from mysqlraft.retention import compactable
from mysqlraft.skips import Skips
from mysqlraft.supervisor import Supervisor
from mysqlraft.witness import Witness

logger = logging.getLogger(__name__)

EXIT_ERROR = 1
EXIT_CONFIGURATION = 2
EXIT_ADDRESS = 3
EXIT_STORAGE = 4
EXIT_CLOCK = 5

CLOSE_SECONDS = 5.0
PUBLISH_SECONDS = 1.0
COMPACT_SECONDS = 10.0
COMPACT_ENTRIES = 1000
"""Fewer entries than these are not worth a compaction."""

EXIT_CODES = """\
exit status of the daemon:
  0  stopped, as it was asked to
  1  an error in mysqlraft itself; the log has the traceback
  2  starting again would not help: the configuration or the directory is wrong, or another daemon has this site's
     identity
  3  an address cannot be listened on
  4  the log's storage failed: starting again goes on from what is on disk
  5  by this machine's clock, a certificate is not valid yet, or has expired
"""


class StartError(Exception):
    """Why the daemon cannot start, in one line; ``status`` is its exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class NotNow(ConfigError):
    """By this machine's clock the certificate is not valid. Setting the clock or renewing the file helps."""


def founding_members(settings: Config) -> Configuration:
    """The members that a new cluster begins with."""
    return Configuration(
        Server(site.id, site.name, str(site.address), site.voter, site.witness, site.priority)
        for site in settings.founders
    )


def open_store(settings: Config) -> LevelDBStore:
    """The site's store, empty or not. The caller closes it.

    Raises:
        StartError: the directory is another site's, in use, or cannot be read.
    """
    try:
        try:
            settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, FileNotFoundError):
            raise StartError(f"data_dir: {settings.data_dir} cannot be a directory", EXIT_CONFIGURATION) from None
        return LevelDBStore(settings.data_dir, settings.cluster.id, settings.own.id)
    except WrongDirectory as error:
        raise StartError(f"data_dir: {error}", EXIT_CONFIGURATION) from None
    except (StoreError, OSError) as error:
        raise StartError(f"data_dir: {error}", EXIT_STORAGE) from None


def found(settings: Config, store: LevelDBStore) -> bool:
    """Makes the file's founders the members of a new cluster; whether that was done now.

    Raises:
        StartError: this site joins a running cluster, or has a log that begins otherwise.
    """
    if settings.own.join:
        raise StartError(
            f"cluster.sites: {settings.site} has join: true and is no founder; `mysqlraft members add` at a running "
            "site makes it a member",
            EXIT_CONFIGURATION,
        )
    try:
        return bootstrap(store, founding_members(settings))
    except ConfigurationError as error:
        raise StartError(f"cluster.sites: {error}", EXIT_CONFIGURATION) from None
    except StoreError as error:
        raise StartError(f"data_dir: {error}", EXIT_STORAGE) from None


def read_skips(settings: Config) -> Skips:
    """Which statements are not to be run at this site. Raises StartError."""
    try:
        return Skips(settings.data_dir)
    except (OSError, ValueError) as error:
        raise StartError(f"data_dir: {error}", EXIT_CONFIGURATION) from None


def link_tls(settings: Config) -> Tls | None:
    """The TLS contexts of the links to other sites; None: the links are not encrypted.

    Raises:
        NotNow: this machine's clock rules the certificate out.
        ConfigError: the files cannot be used.
    """
    files = settings.tls
    if files is None:
        return None
    try:
        return load_tls(files.certificate, files.key, files.ca, settings.site)
    except TlsError as error:
        raise (NotNow if error.by_the_clock else ConfigError)(f"tls.{error.item}: {error}") from None


def run(settings: Config) -> int:
    """Runs the daemon until it is asked to stop; returns its exit status."""
    logs.configure(settings.log)
    logger.info(
        "starting version=%s cluster=%s site=%s id=%d data_dir=%s",
        __version__,
        settings.cluster.id,
        settings.site,
        settings.own.id,
        settings.data_dir,
    )
    try:
        give_large_blocks_back()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(Daemon(settings).run())
    except StartError as error:
        logger.critical("%s", error)
        systemd.notify(f"STATUS={error}")
        return error.status


class Daemon:
    """One run of the consensus process."""

    def __init__(self, settings: Config) -> None:
        self._config = settings
        self._node: Node
        self._supervisor: Supervisor | Witness
        self._access: Access
        self._skips: Skips
        self._watch = Watch(settings.own.id)
        self._diverged = ""
        self._chains: dict[int, int] = {}
        self._stop = asyncio.Event()
        self._broken = ""
        self._rival = ""
        """Why another daemon is this site, and not this one."""
        self._began = time.monotonic()
        self._membership = Membership.MEMBER
        self._disk_came_back = True

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop, number)
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._keep(stack, self._reloads())
            collector.settle()
            systemd.notify("READY=1", "STATUS=started")
            self._node.failed.add_done_callback(lambda _: self._stop.set())
            await self._stop.wait()
            if self._node.failed.done():
                self._broken = str(self._node.failed.exception())
            systemd.notify("STOPPING=1", f"STATUS={self._broken or self._rival or 'stopping'}")
        if not self._disk_came_back:
            self._broken = self._broken or "the disk does not come back"
        if self._broken:
            logger.critical("exiting reason=%r", self._broken)
            return EXIT_STORAGE if self._node.failed.done() or not self._disk_came_back else EXIT_ERROR
        if self._rival:
            logger.critical("%s", self._rival)
            return EXIT_CONFIGURATION
        logger.info("stopped")
        return 0

    async def _start(self, stack: AsyncExitStack) -> None:
        settings = self._config
        try:
            tls = link_tls(settings)
            access = self._access = Access(settings.admin)
        except ConfigError as error:
            status = EXIT_CLOCK if isinstance(error, NotNow) else EXIT_CONFIGURATION
            raise StartError(str(error), status) from None
        store = open_store(settings)
        stack.callback(self._close, store)
        if store.last_index == 0 and store.hard_state.term == 0 and not settings.own.join:
            found(settings, store)
            logger.info("bootstrapped members=%s", founding_members(settings))
        node = self._node = Node(
            settings.own.id,
            settings.cluster.id,
            store,
            str(settings.bind),
            addresses={
                site.id: str(settings.reach(site))
                for site in settings.cluster.sites
                if settings.reach(site) != site.address
            },
            limits=Limits(
                election_ticks=settings.raft.election_ticks,
                heartbeat_ticks=settings.raft.heartbeat_ticks,
                window_bytes=settings.raft.inflight_bytes,
                preference_ticks=10 * settings.raft.election_ticks,
            ),
            tick_seconds=settings.raft.tick_ms / 1000,
            tls=tls,
            names={site.id: site.name for site in settings.cluster.sites},
        )
        node.transport.handshake.on_rival = self._found_rival
        self._skips = read_skips(settings)
        self._supervisor = Witness() if settings.own.witness else Supervisor(settings, node, self._skips)
        admin = admin_server(self._status, lambda: self._broken, actions(Operations(node).perform, self), access.admits)
        try:
            await node.start()
        except OSError as error:
            hint = (
                "" if settings.listen else "; if its address is not one of this machine's, say where to listen: listen"
            )
            raise StartError(f"listen {settings.bind}: {_reason(error)}{hint}", EXIT_ADDRESS) from None
        stack.push_async_callback(self._stop_node)
        if difference := file_difference(settings, node.status()):
            logger.warning("%s", difference)
        listen = settings.admin.listen
        try:
            await admin.start(listen.host, listen.port, access.tls)
        except OSError as error:
            raise StartError(f"admin.listen {listen}: {_reason(error)}", EXIT_ADDRESS) from None
        stack.push_async_callback(admin.stop)
        await self._supervisor.hold(self._hold_reason())
        self._keep(stack, self._publish())
        self._keep(stack, self._compact())
        self._keep(stack, self._watchdog())
        self._keep(stack, self._supervisor.run())
        stack.push_async_callback(self._supervisor.stop)

    async def _stop_node(self) -> None:
        self._disk_came_back = await self._node.stop()

    def _close(self, store: LevelDBStore) -> None:
        """Nothing that was acknowledged depends on it, so it must not keep the process from ending either, as it could:
        LevelDB waits for a thread of its own, and plyvel holds the interpreter's lock meanwhile."""
        if self._disk_came_back:
            logger.info("closing the log directory=%s seconds_at_most=%.0f", store.directory, CLOSE_SECONDS)
            faulthandler.dump_traceback_later(CLOSE_SECONDS, exit=True)
            store.close()
            faulthandler.cancel_dump_traceback_later()

    def _keep(self, stack: AsyncExitStack, work: Any) -> None:
        """Runs ``work`` until the daemon ends. Its failure is a mistake in this program, and ends the daemon."""
        task = asyncio.get_running_loop().create_task(work)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        def done(task: asyncio.Task[Any]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.critical("a task of the daemon failed", exc_info=error)
                self._broken = self._broken or f"{type(error).__name__}: {error}"
                self._stop.set()

        task.add_done_callback(done)
        stack.push_async_callback(end)

    def _asked_to_stop(self, number: signal.Signals) -> None:
        logger.info("stopping signal=%s", number.name)
        self._stop.set()

    def _found_rival(self, by: int, rival: Rival) -> None:
        """A peer is connected with another daemon that is this site. The one that was there first goes on: this one,
        if it is older than what the other one has at that peer, and has connections of its own."""
        older = time.monotonic() - self._began > rival.seconds
        if self._rival or (older and any(map(self._node.transport.connected, self._node.status()["members"]))):
            return
        since = datetime.now(UTC) - timedelta(seconds=rival.seconds)
        names = {site.id: site.name for site in self._config.cluster.sites}
        peer = names.get(by, f"site {by}")
        self._rival = (
            f"another daemon is {self._config.site} (site {self._config.own.id}) already, at {rival.where}: {peer} has "
            f"been connected with it since {since:%Y-%m-%d %H:%M:%S} UTC. Two of them would undo each other's work, so "
            "this one stops, and has changed nothing; stop the other one first, or give this one the file of a site of "
            "its own"
        )
        self._stop.set()

    # What others may know.

    def _status(self) -> dict[str, Any]:
        return cluster_status(self._config, self._node.status(), self._replica_status(), self._heard)

    def _replica_status(self) -> dict[str, Any]:
        """What the replica process says, and the log's running checksum beside its own at each checkpoint."""
        status = self._supervisor.status
        return {**status, "checks": self._checks(status.get("checks") or [])}

    def _heard(self, site: int) -> tuple[Row, float] | None:
        told = self._node.transport.status_of(site)
        if told is None:
            return None
        row = heard_row(told[0])
        return None if row is None else (row, told[1])

    # What actions need of this site (`admin.actions.Site`).

    async def skip(self, index: int, by: str) -> str:
        status = self._supervisor.status
        reason = self._hold_reason() or status["reason"]
        stopped_at = None if self._hold_reason() or status["state"] != State.STOPPED else status.get("stopped_at")
        if stopped_at is None:
            state = f"{status['state']}: {reason}" if reason else status["state"]
            raise NotDone(Outcome.REFUSED, f"this site has not stopped at a statement (it is {state})")
        if stopped_at != index:
            raise NotDone(Outcome.REFUSED, f"it is at index {stopped_at} that this site has stopped, not at {index}")
        try:
            self._skips.add(index, reason, by)
        except OSError as error:
            raise NotDone(Outcome.UNKNOWN, f"the decision cannot be kept in data_dir: {_reason(error)}") from None
        logger.warning("statement skipped index=%d by=%r reason=%r", index, by, reason)
        await self._supervisor.reload(self._config)
        return str(reason)

    async def skip_captured(self, wanted: str, by: str) -> tuple[str, str, str]:
        status = self._supervisor.status
        reason = self._hold_reason() or status["reason"]
        stopped_at = None if self._hold_reason() else status.get("capture_stopped_at")
        if stopped_at is None:
            state = f"{status['state']}: {reason}" if reason else status["state"]
            raise NotDone(Outcome.REFUSED, f"capture has not stopped at a transaction here (this site is {state})")
        place = Place(*stopped_at)
        if not place.is_named(wanted):
            raise NotDone(Outcome.REFUSED, f"it is at {place} that capture has stopped, not at {wanted}")
        try:
            skip = self._skips.add_captured(place, reason, by)
        except OSError as error:
            raise NotDone(Outcome.UNKNOWN, f"the decision cannot be kept in data_dir: {_reason(error)}") from None
        logger.warning("own transaction skipped at=%s by=%r rows=%s reason=%r", place, by, skip.rows, reason)
        await self._supervisor.reload(self._config)
        return str(place), str(reason), skip.rows

    async def wait_skipped(self, rows: str) -> None:
        await self._supervisor.wait_report(
            lambda status: rows in (status.get("capture_details") or {}).get("skipped", ())
        )

    def state(self) -> str:
        status = self._supervisor.status
        return f"{status['state']}: {status['reason']}" if status["reason"] else str(status["state"])

    async def read_index(self) -> int:
        self._applies()
        return await self._node.read_index()

    async def wait_applied(self, index: int) -> None:
        self._applies()
        await self._supervisor.wait_applied(index)

    def _applies(self) -> None:
        """Raises NotDone if nothing is applied here, however long somebody waits."""
        if reason := self._hold_reason():
            raise NotDone(Outcome.REFUSED, f"nothing is applied here: {reason}")

    def applied(self) -> int | None:
        return self._supervisor.status.get("applied")

    async def _publish(self) -> None:
        """Tells the other sites this site's row, and the service manager a line; keeps the replica process to what
        the site is to the cluster."""
        while True:
            membership, reason = self._node.membership
            if membership is not self._membership:
                logger.warning("membership=%s reason=%r", membership, reason)
                self._membership = membership
            status = self._node.status()
            row = own_row(self._config, status, self._replica_status())
            self._compare(row["checks"], status["members"])
            await self._supervisor.hold(self._hold_reason())
            self._node.transport.publish(msgpack.packb(row))
            lag = row["lag"]["entries"]
            reason = f": {row['reason']}" if row["reason"] else f", {lag} entries behind" if lag else ""
            systemd.notify(f"STATUS={row['role']} in term {row['term']}, replication {row['state']}{reason}")
            await asyncio.sleep(to_beat(PUBLISH_SECONDS))

    async def _compact(self) -> None:
        """Lets go of the log's beginning, if that is wanted, as far as no member needs it."""
        while True:
            await asyncio.sleep(COMPACT_SECONDS)
            keep, node = self._config.raft.log_keep, self._node
            members = node.status()["members"]
            if not keep or node.membership[0] is not Membership.MEMBER or self._config.own.id not in members:
                continue
            needed = None if self._config.own.witness else self._supervisor.status.get("needed_from", 0)
            heard = [self._heard(site) for site in members if site != self._config.own.id]
            stored = [None if told is None else told[0].get("commit_index") for told in heard]
            last = compactable(node.commit_index, needed, stored, keep)
            if last - node.first_index >= max(COMPACT_ENTRIES, keep // 10):
                logger.info("log compacted last=%d", node.compact(last))

    def _hold_reason(self) -> str:
        """Why nothing is to be replicated at this site, whatever its replica process thinks; "" if it is."""
        if self._node.membership[0] is not Membership.MEMBER:
            return "this site is not a member of the cluster"
        return self._diverged

    def _checks(self, told: list[Check]) -> list[Check]:
        """What this site has at its last checkpoints: the replica's running checksum, and the log's beside it."""
        node, before = self._node, self._chains
        self._chains = {}
        for index, _ in told:
            if index in before:
                self._chains[index] = before[index]
            elif node.first_index <= index <= node.commit_index:
                self._chains[index] = node.committed_entries(index, 1)[0].chain
        return [(index, f"{digest} {self._chains[index]:016x}") for index, digest in told if index in self._chains]

    def _compare(self, own: list[Check], members: Mapping[int, Mapping[str, Any]]) -> None:
        """Finds out whether this site has gone astray; once it has, no reload changes that."""
        self._watch.hear(self._config.own.id, own)
        for site in members:
            if site != self._config.own.id and (heard := self._heard(site)) is not None:
                self._watch.hear(site, heard[0].get("checks") or ())
        sites = sum(not member["witness"] for member in members.values())
        verdict = self._watch.verdict(sites, asyncio.get_running_loop().time())
        if verdict and not self._diverged:
            self._diverged = verdict
            logger.critical("replication stops: %s", verdict)

    async def _watchdog(self) -> None:
        """Says that this event loop turns. A dead one is what the service manager should end: nothing here can."""
        if (due := systemd.watchdog_seconds()) is None:
            return
        while True:
            systemd.notify("WATCHDOG=1")
            await asyncio.sleep(due / 3)

    # SIGHUP

    async def _reloads(self) -> None:
        hung_up = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up.set)
        while True:
            await hung_up.wait()
            hung_up.clear()
            systemd.reloading()
            try:
                await self._reload(config.load(self._config.source))
            except ConfigError as error:
                for problem in error.problems:
                    logger.error("reload refused, nothing changed: %s", problem)
            systemd.notify("READY=1")

    async def _reload(self, new: Config) -> None:
        changed = keys.changed(self._config, new)
        fixed = [path for path, allowed in changed.items() if allowed is Reload.RESTART]
        if fixed:
            raise ConfigError(*(f"{path} takes a restart of the daemon" for path in fixed))
        tls = link_tls(new)
        self._access.reload(new.admin)
        self._config = new
        self._node.transport.handshake.tls = tls
        logs.configure(new.log)
        logger.info("reloaded changed=%s", ",".join(changed) or "nothing")
        if Reload.REPLICA in changed.values() or self._supervisor.status["state"] in STOPPED:
            await self._supervisor.reload(new)


def _reason(error: OSError) -> str:
    """Without the address, which asyncio would name again."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
