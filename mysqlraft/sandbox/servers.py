"""Private, real database servers on loopback.

    servers = find_servers()
    with Server.create(servers["mysql"], directory, server_id=1) as server:
        with server.connect() as connection: ...

A server is configured as a site's server should be (row-based durable binlog, full row images and metadata) and small.
It cannot outlive the process that started it, and nothing but servers started here is ever ended.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pymysql
from pymysql.connections import Connection
from pymysql.cursors import Cursor

from mysqlraft.sandbox.installation import (
    ENGINES,
    Engine,
    Installation,
    ServerNotFound,
    find_server,
    find_servers,
)
from mysqlraft.sandbox.options import Options, default_options, normalised, write_options
from mysqlraft.sandbox.ports import LOOPBACK, PortLease, reserve_port
from mysqlraft.sandbox.process import spawn_bound
from mysqlraft.sandbox.template import ensure_template

__all__ = [
    "ENGINES",
    "Engine",
    "Installation",
    "Server",
    "ServerError",
    "ServerNotFound",
    "find_server",
    "find_servers",
    "start_all",
    "stop_all",
]

ROOT: Final = "root"
_SOCKET_PATH_LIMIT: Final = 107
"""Bytes of a unix socket's path, less its terminating zero (sun_path)."""


class ServerError(Exception):
    """A server that does not start, does not stop, or died. The message carries the end of its error log."""


class Server:
    """One server with a directory of its own: data, configuration, socket and error log."""

    def __init__(
        self, installation: Installation, directory: Path, lease: PortLease, server_id: int, password: str
    ) -> None:
        """Use `create`."""
        self.installation = installation
        self.directory = directory
        self.server_id = server_id
        self.user = ROOT
        self.password = password
        self._lease = lease
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_directory: Path | None = None
        if len(bytes(directory / "server.sock")) > _SOCKET_PATH_LIMIT:
            self._socket_directory = Path(tempfile.mkdtemp(prefix="mysqlraft-"))

    @classmethod
    def create(
        cls,
        installation: Installation,
        directory: Path,
        *,
        port: int | None = None,
        server_id: int = 1,
        gtid: bool = True,
        options: Options | None = None,
    ) -> Self:
        """Makes `directory` (which must not exist, or be empty) a server's home. Does not start it.

        `options` come on top of the defaults (see options.py). `gtid` matters for MySQL only. Without `port` a free one
        is reserved. Raises FileExistsError, or OSError if the port is taken.
        """
        directory = directory.absolute()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise FileExistsError(f"{directory} is not empty")
        lease = reserve_port(port)
        try:
            defaults = default_options(installation, directory, port=lease.port, server_id=server_id, gtid=gtid)
            configuration = {**defaults, **normalised(options or {})}
            template = ensure_template(installation, configuration, partial(_secure, installation))
            server = cls(installation, directory, lease, server_id, template.password)
            configuration["socket"] = str(server.socket)
            template.copy_to(directory / "data")
            (directory / "tmp").mkdir()
            write_options(directory / "my.cnf", configuration)
        except BaseException:
            lease.release()
            raise
        return server

    @property
    def engine(self) -> Engine:
        return self.installation.engine

    @property
    def port(self) -> int:
        return self._lease.port

    @property
    def address(self) -> tuple[str, int]:
        """Host and port for TCP."""
        return LOOPBACK, self._lease.port

    @property
    def socket(self) -> Path:
        """The unix socket."""
        return (self._socket_directory or self.directory) / "server.sock"

    @property
    def pid(self) -> int | None:
        """The process id while the server runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def running(self) -> bool:
        return self.pid is not None

    def start(self, *, timeout: float = 60.0) -> None:
        """Starts the server and waits until it answers (at most `timeout` seconds). Raises ServerError."""
        self.launch()
        self.wait_ready(timeout)

    def launch(self) -> None:
        """Starts the server without waiting for it. Raises ServerError if it runs already."""
        if self.running:
            raise ServerError(f"{self} runs already")
        self.socket.unlink(missing_ok=True)
        with (self.directory / "output.log").open("ab") as output:
            self._process = spawn_bound(
                [*self.installation.command(), f"--defaults-file={self.directory / 'my.cnf'}"],
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Waits until the server answers. Raises ServerError after `timeout` seconds, or at once if it has died."""
        deadline = time.monotonic() + timeout
        while True:
            if self._process is None or self._process.poll() is not None:
                status = None if self._process is None else self._process.returncode
                raise ServerError(f"{self} is not running (exit status {status}){self._log_tail()}")
            # The socket appears when recovery is over: until then there is nobody to ask.
            if self.socket.exists():
                with contextlib.suppress(pymysql.err.OperationalError), self.connect(connect_timeout=5):
                    return
            if time.monotonic() > deadline:
                raise ServerError(f"{self} does not answer after {timeout:g} s{self._log_tail()}")
            time.sleep(0.02)

    def stop(self, *, timeout: float = 60.0) -> None:
        """Shuts the server down cleanly. One that takes longer than `timeout` seconds is killed: ServerError."""
        if self._process is None:
            return
        if self.running:
            self.request_stop()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise ServerError(f"{self} did not stop in {timeout:g} s and was killed{self._log_tail()}") from None
        self._process = None

    def request_stop(self) -> None:
        """Tells the server to shut down cleanly, without waiting for it."""
        if self._process is not None and self._process.poll() is None:
            # A halted (SIGSTOP) server could not act on the other signal.
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()

    def kill(self) -> None:
        """Kills the server (SIGKILL), as a crash of the program would. Does nothing if it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self, *, timeout: float = 60.0) -> None:
        """Stops the server cleanly and starts it again, at the same address."""
        self.stop(timeout=timeout)
        self.start(timeout=timeout)

    def remove(self) -> None:
        """Ends the server, deletes all that it kept and gives its port back."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._socket_directory is not None:
            shutil.rmtree(self._socket_directory, ignore_errors=True)
        self._lease.release()

    def connect(
        self,
        database: str | None = None,
        user: str | None = None,
        *,
        password: str | None = None,
        tcp: bool = False,
        autocommit: bool = True,
        **options: Any,
    ) -> Connection[Cursor]:
        """Connects as root, or as `user` with `password`, over the unix socket or (`tcp`) over TCP.

        Further keyword arguments go to pymysql.connect. Raises pymysql.err.OperationalError.
        """
        way: dict[str, Any] = (
            {"host": LOOPBACK, "port": self.port}
            if tcp
            # A socket needs no TLS, for which PyMySQL would read all certificates of the system each time.
            else {"host": "localhost", "unix_socket": str(self.socket), "ssl_disabled": True}
        )
        if user is None or user == ROOT:
            user, password = ROOT, self.password if password is None else password
        settings = {"charset": "utf8mb4", **way, **options}
        return pymysql.connect(user=user, password=password or "", database=database, autocommit=autocommit, **settings)

    def error_log(self) -> str:
        """What the server wrote to its error log, and before that to its standard output."""
        texts = []
        for name in ("output.log", "error.log"):
            with contextlib.suppress(FileNotFoundError):
                texts.append((self.directory / name).read_text(errors="replace"))
        return "".join(texts)

    def memory(self) -> int:
        """Resident memory in bytes; 0 if the server does not run."""
        pid = self.pid
        if pid is None:
            return 0
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0

    def _log_tail(self) -> str:
        tail = "\n".join(self.error_log().splitlines()[-15:])
        return f"; the end of its error log:\n{tail}" if tail else ""

    def __str__(self) -> str:
        return f"{self.engine} {self.installation.version_text} at {LOOPBACK}:{self.port} in {self.directory}"

    def __enter__(self) -> Self:
        """Starts the server if it does not run."""
        if not self.running:
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the server."""
        self.remove()


def start_all(servers: Iterable[Server], *, timeout: float = 60.0) -> None:
    """Starts several servers at the same time and waits for all. Raises ServerError for the first that fails."""
    started = list(servers)
    for server in started:
        server.launch()
    deadline = time.monotonic() + timeout
    for server in started:
        server.wait_ready(max(1.0, deadline - time.monotonic()))


def stop_all(servers: Iterable[Server], *, timeout: float = 60.0) -> None:
    """Shuts several servers down cleanly, at the same time. Raises ServerError for the first that had to be killed."""
    stopping = list(servers)
    for server in stopping:
        server.request_stop()
    for server in stopping:
        server.stop(timeout=timeout)


def _secure(installation: Installation, work: Path, options: Options, password: str) -> None:
    """Gives a new data directory's root account a password, and an account for TCP (names are not resolved)."""
    lease = reserve_port()
    server = Server(installation, work, lease, 1, "")
    try:
        write_options(work / "my.cnf", {**options, "port": str(lease.port), "socket": str(server.socket)})
        server.start()
        with server.connect() as connection, connection.cursor() as cursor:
            cursor.execute("ALTER USER root@localhost IDENTIFIED BY %s", (password,))
            # MariaDB also made accounts without a password for other names of this machine.
            cursor.execute("SELECT host FROM mysql.user WHERE user = 'root' AND host <> 'localhost'")
            for (host,) in cursor.fetchall():
                cursor.execute("DROP USER root@%s", (host,))
            cursor.execute("CREATE USER root@%s IDENTIFIED BY %s", (LOOPBACK, password))
            cursor.execute("GRANT ALL ON *.* TO root@%s WITH GRANT OPTION", (LOOPBACK,))
        server.stop()
    finally:
        server.kill()
        lease.release()
