"""Private servers of both kinds: they survive a kill with all that was committed, and never outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pymysql
import pytest

from mysqlraft.sandbox.installation import Engine, Installation
from mysqlraft.sandbox.ports import reserve_port
from mysqlraft.sandbox.servers import Server, ServerError, ServerNotFound, find_servers, start_all, stop_all
from tests.harness.pool import LendServers, ServerFactory, ServerPool


def query(server: Server, statement: str, **connection: Any) -> tuple[tuple[object, ...], ...]:
    with server.connect(**connection) as session, session.cursor() as cursor:
        cursor.execute(statement)
        return tuple(cursor.fetchall())


def variable(server: Server, name: str) -> object:
    return query(server, f"SELECT @@global.{name}")[0][0]


def test_configuration_is_what_capture_requires(server: Server) -> None:
    assert variable(server, "log_bin") == 1
    assert variable(server, "binlog_format") == "ROW"
    assert variable(server, "binlog_row_image") == "FULL"
    assert variable(server, "binlog_row_metadata") == "FULL"
    assert variable(server, "sync_binlog") == 1
    assert variable(server, "innodb_flush_log_at_trx_commit") == 1
    assert variable(server, "character_set_server") == "utf8mb4"
    assert variable(server, "server_id") == server.server_id
    if server.engine == "mysql":
        assert variable(server, "gtid_mode") == "ON"


def test_root_by_socket_and_by_tcp(server: Server) -> None:
    assert query(server, "SELECT CURRENT_USER()") == (("root@localhost",),)
    assert query(server, "SELECT CURRENT_USER()", tcp=True) == (("root@127.0.0.1",),)
    with pytest.raises(pymysql.err.OperationalError):
        server.connect(password="wrong", tcp=True)
    assert query(server, "SELECT COUNT(*) FROM mysql.user WHERE user IN ('root', '')") == ((2,),)


def test_confirmed_rows_survive_a_kill(server: Server) -> None:
    query(server, "CREATE DATABASE d")
    query(server, "CREATE TABLE d.t (id INT PRIMARY KEY)")
    query(server, "INSERT INTO d.t VALUES (1), (2)")
    address = server.address
    server.kill()
    assert not server.running
    with pytest.raises(pymysql.err.OperationalError):
        server.connect()
    server.start()
    query(server, "INSERT INTO d.t VALUES (3)")
    server.restart()
    assert server.address == address
    assert query(server, "SELECT id FROM d.t ORDER BY id") == ((1,), (2,), (3,))


def test_options_replace_the_defaults(server_factory: ServerFactory) -> None:
    server = server_factory(
        options={"auto-increment-increment": "16", "auto_increment_offset": "3", "sync-binlog": "0"}, gtid=False
    )
    assert variable(server, "auto_increment_increment") == 16
    assert variable(server, "auto_increment_offset") == 3
    assert variable(server, "sync_binlog") == 0
    if server.engine == "mysql":
        assert variable(server, "gtid_mode") == "OFF"


def test_server_that_cannot_start_says_why(server_factory: ServerFactory) -> None:
    with pytest.raises(ServerError, match="no_such_option"):
        server_factory(options={"no_such_option": "1"})


def test_directory_in_use_is_refused(installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "somebodys-file").touch()
    with pytest.raises(FileExistsError):
        Server.create(installation, tmp_path)


def test_directory_too_deep_for_a_socket(installation: Installation, tmp_path: Path) -> None:
    server = Server.create(installation, tmp_path / ("deep" * 30))
    with server:
        assert query(server, "SELECT 1") == ((1,),)
    assert not server.socket.parent.exists()


@pytest.mark.timeout(300)
def test_six_in_parallel(servers: LendServers) -> None:
    six = servers(6)
    assert len({server.server_id for server in six}) == 6
    if six[0].engine == "mysql":
        assert len({variable(server, "server_uuid") for server in six}) == 6
    stop_all(six)
    assert not any(server.running for server in six)
    begin = time.monotonic()
    start_all(six)
    seconds = time.monotonic() - begin
    megabytes = [server.memory() >> 20 for server in six]
    print(f"{six[0].engine}: six servers in {seconds:.1f} s, resident MiB each: {megabytes}")
    assert max(megabytes) < 400


def test_pool_lends_clean_servers(installation: Installation, tmp_path: Path) -> None:
    pool = ServerPool(installation, tmp_path)
    try:
        (server,) = pool.borrow(1)
        query(server, "CREATE DATABASE `odd``name`")
        query(server, "CREATE TABLE `odd``name`.t (id INT PRIMARY KEY)")
        query(server, "CREATE USER app@'%' IDENTIFIED BY 'x'")
        query(server, "SET GLOBAL max_connections = 77")
        query(server, "SET GLOBAL sql_mode = ''")
        holder = server.connect(autocommit=False)
        holder.query("INSERT INTO `odd``name`.t VALUES (1)")
        pid = server.pid
        pool.give_back([server])
        assert pool.borrow(1) == [server]
        assert server.pid == pid
        assert variable(server, "max_connections") == 100
        assert variable(server, "sql_mode") != ""
        assert ("odd`name",) not in query(server, "SHOW DATABASES")
        assert query(server, "SELECT user FROM mysql.user WHERE user = 'app'") == ()
        assert len(query(server, "SHOW BINARY LOGS")) == 1

        query(server, "CREATE DATABASE d")
        query(server, "CREATE TABLE d.t (id INT PRIMARY KEY)")
        with server.connect() as session:
            session.query("XA START 'x'")
            session.query("INSERT INTO d.t VALUES (1)")
            session.query("XA END 'x'")
            session.query("XA PREPARE 'x'")
        pool.give_back([server])
        assert not server.running

        (another,) = pool.borrow(1)
        another.restart()
        pool.give_back([another])
        assert not another.running
    finally:
        pool.close()


CHILD = """
import sys, threading, time
from pathlib import Path
from mysqlraft.sandbox.servers import Server, find_servers
engine, directory = sys.argv[1], Path(sys.argv[2])
server = Server.create(find_servers(engine)[engine], directory)
# In a thread that ends at once: the server must live on, as long as this process.
starter = threading.Thread(target=server.start)
starter.start()
starter.join()
time.sleep(0.3)
print(server.pid if server.running else "dead", flush=True)
time.sleep(600)
"""


def test_server_dies_with_its_parent_and_not_before(engine: Engine, tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", CHILD, engine, str(tmp_path / "server")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_starting_from_threads_at_once(servers: LendServers) -> None:
    three = servers(3)
    stop_all(three)
    threads = [threading.Thread(target=server.start) for server in three]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(server.running for server in three)


def test_ports_are_not_given_twice() -> None:
    leases = [reserve_port() for _ in range(50)]
    try:
        assert len({lease.port for lease in leases}) == 50
        with pytest.raises(OSError, match="in use"):
            reserve_port(leases[0].port)
    finally:
        for lease in leases:
            lease.release()
    reserve_port(leases[0].port).release()


def test_missing_servers_are_an_error_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("mysqlraft.sandbox.installation._SYSTEM_DIRECTORIES", ())
    with pytest.raises(ServerNotFound, match=r"deploy/setup\.sh"):
        find_servers()
