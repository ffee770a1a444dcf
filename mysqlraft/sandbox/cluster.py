"""A whole cluster on one machine: for each site a private server and a daemon, and a relay on every link.

    with Cluster.create(find_servers("mysql")["mysql"], directory, sites=3) as cluster:
        cluster[1].server.connect()
        cluster.cut(3)
        cluster[2].daemon.kill()

Nothing is left behind: servers, daemons and relays die with the process that started them, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pymysql
import yaml
from pymysql.connections import Connection
from pymysql.cursors import Cursor

from mysqlraft import certificates, config
from mysqlraft.admin.status import State, own, unready
from mysqlraft.mysql.preflight_grants import grant_statements
from mysqlraft.sandbox.links import Links, child_environment
from mysqlraft.sandbox.ports import LOOPBACK, PortLease, reserve_port
from mysqlraft.sandbox.process import spawn_bound
from mysqlraft.sandbox.relay import CutMode
from mysqlraft.sandbox.servers import Installation, Server, start_all

NAMES = (
    "tokyo", "singapore", "frankfurt", "dublin", "virginia", "oregon", "mumbai", "sydney", "stockholm", "paris",
    "milan", "montreal", "ohio", "osaka", "seoul",
)  # fmt: skip

_ACCOUNT = "mysqlraft"

CLUSTER = "sandbox"
"""The cluster's name in every configuration."""

Status = dict[str, Any]


class ClusterError(Exception):
    """A daemon died, or a cluster did not get where it should in time. The message says which site, and why."""


class Daemon:
    """One site's daemon: two processes, of which the first is ours and the second its child."""

    def __init__(self, configuration: Path, data_dir: Path, admin: str, log: Path) -> None:
        self.config = configuration
        self.data_dir = data_dir
        self.admin = admin
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The consensus process, while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def running(self) -> bool:
        return self.pid is not None

    @property
    def died(self) -> bool:
        """Whether it ended by itself."""
        return self._process is not None and self._process.poll() is not None

    @property
    def replica_pid(self) -> int | None:
        """The replica process, while it runs."""
        pid = self.pid
        if pid is None:
            return None
        with contextlib.suppress(OSError):
            children = [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
            return children[0] if children else None
        return None

    def start(self) -> None:
        if self.running:
            raise ClusterError(f"the daemon of {self.config} runs already")
        with self.log.open("ab") as output:
            self._process = spawn_bound(
                [sys.executable, "-m", "mysqlraft", "run", "--config", str(self.config)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=child_environment(),
            )

    def stop(self, timeout: float = 20.0) -> int:
        """Asks the daemon to end (SIGTERM); its exit status."""
        process = self._process
        if process is None:
            return 0
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ClusterError(f"the daemon did not stop in {timeout:g} s and was killed{self.log_tail()}") from None
        self._process = None
        return status

    def kill(self) -> None:
        """Kills the consensus process (SIGKILL), as a crash would; the replica ends by itself."""
        if self._process is not None:
            replica = self.replica_pid
            self._process.kill()
            self._process.wait()
            self._process = None
            deadline = time.monotonic() + 10
            while replica is not None and _alive(replica):
                if time.monotonic() > deadline:
                    raise ClusterError(f"the replica process {replica} outlived its daemon by 10 s")
                time.sleep(0.01)

    def kill_replica(self) -> bool:
        """Kills the replica process alone (SIGKILL). False if there is none at the moment."""
        replica = self.replica_pid
        if replica is None:
            return False
        try:
            os.kill(replica, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def status(self, timeout: float = 2.0) -> Status:
        """What the admin API's /status says. Raises OSError while there is no answer."""
        with urllib.request.urlopen(f"{self.admin}/status", timeout=timeout) as answer:
            status: Status = json.load(answer)
        return status

    def log_tail(self, lines: int = 15) -> str:
        with contextlib.suppress(OSError):
            tail = self.log.read_text(errors="replace").splitlines()[-lines:]
            return "; the end of its log:\n" + "\n".join(tail)
        return ""


@dataclass(slots=True)
class ClusterSite:
    """One site: its server, its daemon."""

    number: int
    name: str
    server: Server
    daemon: Daemon
    listen: PortLease
    admin: PortLease
    has_account: bool = False

    def description(self) -> dict[str, Any]:
        """How to reach the site, for people and programs (`sites.json`)."""
        host, port = self.server.address
        return {
            "site": self.name,
            "mysql": {
                "host": host,
                "port": port,
                "socket": str(self.server.socket),
                "user": self.server.user,
                "password": self.server.password,
            },
            "config": str(self.daemon.config),
            "admin": self.daemon.admin,
            "pid": self.daemon.pid,
            "log": str(self.daemon.log),
        }


class Cluster:
    """Sites 1 to N and the links between them."""

    def __init__(self, directory: Path, sites: Sequence[ClusterSite], links: Links | None) -> None:
        """Use `create`."""
        self.directory = directory
        self._sites = {site.number: site for site in sites}
        self._links = links

    @classmethod
    def create(
        cls,
        installation: Installation,
        directory: Path,
        *,
        sites: int,
        rtt: float = 0.0,
        links: bool = True,
        tls: bool = True,
        settings: dict[str, Any] | None = None,
    ) -> Self:
        """Makes servers, configurations and relays in `directory`. Starts the relays only.

        Args:
            sites: how many, 1 to 15.
            rtt: round-trip time between any two sites, in seconds.
            links: without, the daemons reach each other directly, and no link can be cut.
            tls: without, the daemons' links are not encrypted.
            settings: more for every site's configuration file, by section.
        """
        made: list[ClusterSite] = []
        relays = Links() if links else None
        cluster = cls(directory, made, relays)
        try:
            for number in range(1, sites + 1):
                made.append(_make_site(installation, directory, number, sites))
                cluster._sites[number] = made[-1]
            if relays is not None:
                relays.start({site.number: (LOOPBACK, site.listen.port) for site in made}, rtt / 2)
            keys = directory / "certificates" if tls else None
            if keys is not None:
                certificates.make(keys, CLUSTER, [site.name for site in made])
            for site in made:
                _write_configuration(site, made, relays, rtt, keys, settings or {})
        except BaseException:
            cluster.close()
            raise
        return cluster

    def __getitem__(self, number: int) -> ClusterSite:
        return self._sites[number]

    def __iter__(self) -> Iterator[ClusterSite]:
        return iter(self._sites.values())

    def __len__(self) -> int:
        return len(self._sites)

    @property
    def connects(self) -> dict[int, Callable[[], Any]]:
        """How to reach each site's server, as `Workload` and `compare` want it."""
        return {site.number: site.server.connect for site in self}

    def start_servers(self) -> None:
        """Starts all servers; the first time, also makes the daemons' accounts, with the documented grants."""
        start_all([site.server for site in self])
        for site in self:
            if not site.has_account:
                _make_account(site)
                site.has_account = True

    def start_daemons(self) -> None:
        for site in self:
            if not site.daemon.running:
                site.daemon.start()

    def stop_daemons(self) -> None:
        for site in self:
            site.daemon.stop()

    def start(self) -> None:
        """Starts all servers and daemons, and returns when the cluster replicates."""
        self.start_servers()
        self.start_daemons()
        self.wait_ready()

    def cut(self, number: int, mode: CutMode = "blackhole") -> None:
        """Cuts a site's daemon off from all others."""
        assert self._links is not None, "a cluster without relays"
        self._links.cut(number, mode)

    def heal(self, number: int) -> None:
        assert self._links is not None, "a cluster without relays"
        self._links.heal(number)

    def statuses(self) -> dict[int, Status | None]:
        """What each daemon says of itself; None where there is no answer."""
        found: dict[int, Status | None] = {}
        for site in self:
            try:
                found[site.number] = site.daemon.status()
            except (OSError, ValueError):
                found[site.number] = None
        return found

    # Conditions, awaited.

    def check(self) -> None:
        """Raises ClusterError if a daemon that should run has died, or a site has stopped replicating."""
        for site in self:
            if site.daemon.died:
                raise ClusterError(f"the daemon of {site.name} has died{site.daemon.log_tail()}")
        for number, status in self.statuses().items():
            if status is not None and own(status)["state"] == State.STOPPED:
                raise ClusterError(f"{self[number].name} has stopped: {own(status)['reason']}")

    def leader(self) -> int | None:
        """The site that most daemons take for the leader."""
        votes = Counter(status["leader"] for status in self.statuses().values() if status and status["leader"])
        name = votes.most_common(1)[0][0] if votes else None
        return next((site.number for site in self if site.name == name), None)

    def wait_leader(self, timeout: float = 30.0) -> int:
        self._wait(timeout, lambda: [] if self.leader() else ["no site knows a leader"])
        leader = self.leader()
        assert leader is not None
        return leader

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Waits until every daemon answers, knows the leader, and has its server."""
        self._wait(timeout, lambda: [line for site in self for line in self._unready(site)])

    def wait_everywhere(
        self,
        missing: Callable[[Connection[Cursor]], Sequence[str]],
        timeout: float,
        watch: Callable[[], None] | None = None,
    ) -> None:
        """Waits until nothing is `missing` at any site and all sites have applied the log equally far.

        Args:
            missing: what a site still lacks, from a connection to its server. It has to cover what was last written
                at each site: then its origin has put it into the log, and another site has applied it.
            watch: called again and again meanwhile.
        """

        def lacking() -> list[str]:
            found: list[str] = []
            for site in self:
                with site.server.connect() as connection:
                    found.extend(f"{site.name}: {line}" for line in missing(connection))
            return found

        deadline = time.monotonic() + timeout
        self._wait(timeout, lacking, watch)
        # A site shows its own rows before they come back to it in the log, but the others do not: the highest index
        # applied anywhere is at least that of the last of them.
        target = max(self.applied(site.number) for site in self)
        for site in self:
            self.wait_reached(site.number, target, max(1.0, deadline - time.monotonic()), watch)

    def wait_reached(self, number: int, index: int, timeout: float, watch: Callable[[], None] | None = None) -> None:
        """Waits until a site has applied the log up to `index`."""

        def lacking() -> list[str]:
            applied = self.applied(number)
            return [] if applied >= index else [f"{self[number].name}: applied {applied} of {index}"]

        self._wait(timeout, lacking, watch)

    def applied(self, number: int) -> int:
        """The log index that the site's tables hold, from its own server; 0 before the first."""
        with self[number].server.connect() as connection, connection.cursor() as cursor:
            try:
                cursor.execute("SELECT applied FROM mysqlraft.progress")
            except pymysql.err.ProgrammingError:
                return 0
            row = cursor.fetchone()
        return int(row[0]) if row else 0

    def conflicts(self, number: int) -> int:
        """The length of the conflict history at a site."""
        with self[number].server.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT COUNT(*) FROM mysqlraft.conflicts")
            row = cursor.fetchone()
        return int(row[0]) if row else 0

    def applied_anywhere(self) -> int:
        """The highest log index that some site's tables hold."""
        return max(self.applied(site.number) for site in self)

    def _unready(self, site: ClusterSite) -> list[str]:
        """Why the site does not replicate yet."""
        try:
            status = site.daemon.status()
        except (OSError, ValueError) as error:
            return [f"{site.name}: no answer from its daemon: {error}"]
        reason = unready(status)
        return [f"{site.name}: {reason}"] if reason else []

    def _wait(
        self, timeout: float, lacking: Callable[[], Sequence[str]], watch: Callable[[], None] | None = None
    ) -> None:
        """Waits until nothing is lacking. Raises ClusterError with what is, and how every site is."""
        deadline = time.monotonic() + timeout
        pause = 0.02
        while still := lacking():
            self.check()
            if time.monotonic() > deadline:
                states = [f"{site.name}: {self._state(site)}" for site in self]
                raise ClusterError("\n".join([f"after {timeout:g} s:", *still[:10], "the sites say:", *states]))
            if watch is not None:
                watch()
            time.sleep(pause)
            pause = min(pause * 1.5, 0.25)

    def _state(self, site: ClusterSite) -> str:
        try:
            said = own(site.daemon.status())
        except (OSError, ValueError) as error:
            return f"no answer: {error}{site.daemon.log_tail()}"
        shown = ", ".join(
            f"{key}={said[key]}" for key in ("role", "state", "commit_index", "applied", "lag", "pending")
        )
        return shown if said["state"] == State.RUNNING else f"{shown}: {said['reason']}{site.daemon.log_tail()}"

    def close(self) -> None:
        """Ends everything, whatever state it is in, and gives the ports back. Files stay."""
        for site in self:
            site.daemon.kill()
        if self._links is not None:
            self._links.close()
        for site in self:
            site.server.kill()
            site.listen.release()
            site.admin.release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make_site(installation: Installation, directory: Path, number: int, sites: int) -> ClusterSite:
    name = NAMES[number - 1]
    home = directory / name
    server = Server.create(
        installation,
        home / "server",
        server_id=number,
        # Generated keys of different sites never meet.
        options={"auto_increment_increment": str(sites), "auto_increment_offset": str(number)},
    )
    listen, admin = reserve_port(), reserve_port()
    daemon = Daemon(home / f"{name}.yaml", home / "log", f"http://{LOOPBACK}:{admin.port}", home / "daemon.log")
    return ClusterSite(number, name, server, daemon, listen, admin)


def _write_configuration(
    site: ClusterSite,
    sites: Sequence[ClusterSite],
    links: Links | None,
    rtt: float,
    keys: Path | None,
    settings: dict[str, Any],
) -> None:
    """The site's YAML file. Every file has the same cluster section; `dial` leads through the site's own relays."""
    configuration: dict[str, Any] = {
        "cluster": {
            "id": CLUSTER,
            "sites": [
                {"id": other.number, "name": other.name, "address": f"{LOOPBACK}:{other.listen.port}"}
                for other in sites
            ],
        },
        "site": site.name,
        "data_dir": str(site.daemon.data_dir),
        **({"insecure": True} if keys is None else {"tls": certificates.settings(keys, site.name)}),
        "admin": {"listen": f"{LOOPBACK}:{site.admin.port}"},
        "mysql": {"socket": str(site.server.socket), "user": _ACCOUNT, "password": site.server.password},
    }
    if links is not None and len(sites) > 1:
        configuration["dial"] = {
            other.name: "{}:{}".format(*links.address(site.number, other.number))
            for other in sites
            if other is not site
        }
    if rtt:
        # As the documentation tells real sites to: ten times the round trip, or the default.
        ticks = max(10, round(rtt * 10 / 0.1))
        configuration["raft"] = {"election_ticks": ticks}
    for section, values in settings.items():
        configuration[section] = {**configuration.get(section, {}), **values}
    site.daemon.config.write_text(yaml.safe_dump(configuration, sort_keys=False))
    # It holds the server's password.
    site.daemon.config.chmod(0o600)


def _make_account(site: ClusterSite) -> None:
    """The daemon's account, as `mysqlraft check` would have it made."""
    account = f"{_ACCOUNT}@localhost"
    grants = grant_statements(config.load(site.daemon.config), site.server.engine == "mariadb", account)
    with site.server.connect() as connection, connection.cursor() as cursor:
        # The binlog begins with what the application does.
        cursor.execute("SET SESSION sql_log_bin = 0")
        cursor.execute(f"CREATE USER {account} IDENTIFIED BY %s", (site.server.password,))
        for grant in grants:
            cursor.execute(grant)


def _alive(pid: int) -> bool:
    """Whether the process still runs: one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
