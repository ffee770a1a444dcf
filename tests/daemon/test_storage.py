"""What a disk can do to the daemon, and what the daemon says and does then.

Where a user may make name spaces, the faults are real ones, on a small file system of the test's own; elsewhere they
are as near as can be had without privileges.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import msgpack
import plyvel
import pytest

from mysqlraft.daemon import CLOSE_SECONDS, EXIT_CONFIGURATION, EXIT_STORAGE
from mysqlraft.raft import Configuration, Entry, EntryKind, HardState, LevelDBStore, Server, Write
from mysqlraft.raft.disk import LAST_CALL_SECONDS
from mysqlraft.raft.leveldb_store import FORMAT_VERSION, _entry_key, _sealed
from tests.harness.daemons import MYSQLRAFT, ended, running, settings

pytestmark = pytest.mark.timeout(60)

NAMESPACES = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-euc")

# The daemon itself, which also proposes without end: it needs no server for that.
PROPOSING = """
import asyncio, itertools, sys
from mysqlraft.cli import main
from mysqlraft.raft.node import Node
start = Node.start
async def propose(node):
    await node.wait_committed(2)
    for sequence in itertools.count(1):
        node.propose(1, sequence, bytes(100_000))
        await asyncio.sleep(0.005)
async def starting(node):
    await start(node)
    node.proposing = asyncio.create_task(propose(node))
Node.start = starting
"""
RUN = "sys.exit(main(sys.argv[1:]))"


def mounted(kind: str, directory: Path, program: tuple[str, ...]) -> tuple[str, ...] | None:
    """The program in a name space where `directory` is a file system of this kind; None if that is not permitted."""
    mount = f'mount {kind} "$0"; '
    directory.mkdir(exist_ok=True)
    try:
        probe = subprocess.run([*NAMESPACES, mount + ":", str(directory)], capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return (*NAMESPACES, mount + 'exec "$@"', str(directory), *program) if probe.returncode == 0 else None


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    proposing = (sys.executable, "-c", PROPOSING + RUN)
    program = mounted("-t tmpfs -o size=8m none", tmp_path / "log", proposing)
    expected = "No space left on device; make room there. Nothing that was acknowledged is lost"
    if program is None:
        limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))\n"
        program = (sys.executable, "-c", PROPOSING + limit + RUN)
        expected = "File too large; make room there. Nothing that was acknowledged is lost"
    status, errors = ended(settings(tmp_path), program=program)
    assert status == EXIT_STORAGE
    assert "raft stopped site=1 reason=" in errors
    assert f"{tmp_path}/log cannot be written: IO error: " in errors
    assert expected in errors


def test_what_was_acknowledged_before_the_disk_was_full_is_there_when_it_is_not(tmp_path: Path) -> None:
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))\n"
    told = (
        "import mysqlraft.raft.node as n\nfail = n.Node._fail\n"
        "def failing(node, error):\n"
        "    print('ACKNOWLEDGED', node.commit_index, file=sys.stderr)\n"
        "    fail(node, error)\n"
        "n.Node._fail = failing\n"
    )
    path = settings(tmp_path)
    status, errors = ended(path, program=(sys.executable, "-c", PROPOSING + told + limit + RUN))
    assert status == EXIT_STORAGE
    acknowledged = int(next(line for line in errors.splitlines() if line.startswith("ACKNOWLEDGED")).split()[1])
    assert acknowledged > 10
    store = LevelDBStore(tmp_path / "log", "test", 1)
    assert store.last_index >= acknowledged
    assert len(store.entries(1, acknowledged, 1 << 30)) == acknowledged
    store.close()
    with running(path) as daemon:
        assert daemon.stderr is not None
        assert any("role=leader" in line for line in daemon.stderr)
        daemon.terminate()
        assert daemon.wait(20) == 0


def test_a_failing_fsync(tmp_path: Path) -> None:
    """LevelDB says so as it does here; the disk cannot be made to."""
    failing = (
        "import plyvel, mysqlraft.raft.leveldb_store as store\n"
        "prepare = store.LevelDBStore.prepare\n"
        "def failing(self, writes):\n"
        "    if self.last_index < 20:\n"
        "        return prepare(self, writes)\n"
        "    def write():\n"
        "        with self._errors('cannot be written'):\n"
        "            raise plyvel.IOError(b'IO error: 000003.log: Input/output error')\n"
        "    return write\n"
        "store.LevelDBStore.prepare = failing\n"
    )
    status, errors = ended(settings(tmp_path), program=(sys.executable, "-c", PROPOSING + failing + RUN))
    assert status == EXIT_STORAGE
    assert "cannot be written: IO error: 000003.log: Input/output error; the disk fails: look at the kernel's" in errors


@pytest.mark.parametrize("call", ["sweep", "close"])
def test_a_disk_that_never_comes_back_does_not_keep_the_daemon_from_ending(call: str, tmp_path: Path) -> None:
    """Of a removal it waits for a while; while LevelDB is closed it has no interpreter any more to wait with."""
    hanging = {
        "sweep": "import threading\ndef hang(self, count): threading.Event().wait()\n",
        "close": "import ctypes\ndef hang(self): ctypes.PyDLL(None).sleep(1000)\n",
    }[call]
    patch = f"import mysqlraft.raft.leveldb_store as store\n{hanging}store.LevelDBStore.{call} = hang\n"
    start = "import sys\nfrom mysqlraft.cli import main\n"
    with running(settings(tmp_path), program=(sys.executable, "-c", start + patch + RUN)) as daemon:
        assert daemon.stderr is not None
        assert any("role=leader" in line for line in daemon.stderr)
        daemon.terminate()
        begun = time.monotonic()
        _, errors = daemon.communicate(timeout=30)
    print(errors)
    assert time.monotonic() - begun < LAST_CALL_SECONDS + CLOSE_SECONDS + 5
    if call == "sweep":
        assert daemon.returncode == EXIT_STORAGE
        assert "the disk has not come back from a call within 5 s: leaving without it thread=raft-sweeper" in errors
        assert "exiting reason='the disk does not come back'" in errors
    else:
        assert daemon.returncode == 1
        assert "Timeout (0:00:05)!" in errors
        assert "_close" in errors


def test_a_file_system_without_writing(tmp_path: Path) -> None:
    program = mounted("-t tmpfs -o ro none", tmp_path / "log", MYSQLRAFT)
    if program is None:
        opening = (
            "import errno, os, sys\nfrom mysqlraft.cli import main\nopening = os.open\n"
            "def refused(path, flags, *rest, **named):\n"
            "    if str(path).endswith('lock') and flags & os.O_CREAT:\n"
            "        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)\n"
            "    return opening(path, flags, *rest, **named)\n"
            "os.open = refused\n"
        )
        program = (sys.executable, "-c", opening + RUN)
    status, errors = ended(settings(tmp_path), program=program)
    assert status == EXIT_STORAGE
    assert f"data_dir: {tmp_path}/log: Read-only file system; mount it for writing" in errors


# ---- what is found at the start --------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a site that has a log of four entries."""
    made = settings(tmp_path)
    with running(made) as daemon:
        assert daemon.stderr is not None
        assert any("bootstrapped" in line for line in daemon.stderr)
        daemon.terminate()
        assert daemon.wait(20) == 0
    store = LevelDBStore(tmp_path / "log", "test", 1)
    last, term = store.last_index, store.hard_state.term
    chain = store.entries(last, last, 1)[0].chain
    entries = []
    for index in range(last + 1, last + 4):
        entries.append(Entry(index, term, EntryKind.DATA, 1, 1, index, b"x" * 100, chain))
        chain = entries[-1].chain
    store.write([Write(entries=entries)])
    store.close()
    return made


def change(directory: Path, key: bytes, value: bytes | None) -> None:
    database = plyvel.DB(str(directory / "log"))
    if value is None:
        database.delete(key, sync=True)
    else:
        database.put(key, value, sync=True)
    database.close()


def flip(directory: Path, key: bytes) -> None:
    database = plyvel.DB(str(directory / "log"))
    value = bytearray(database.get(key))
    value[-1] ^= 1
    database.put(key, bytes(value), sync=True)
    database.close()


REMEDY = "do not restart it with a cut log; empty the directory and let it rejoin as a new member"


def last_index(directory: Path) -> int:
    store = LevelDBStore(directory, "test", 1)
    last = store.last_index
    store.close()
    return last


def test_a_flipped_bit_in_the_last_entry(path: Path, tmp_path: Path) -> None:
    last = last_index(tmp_path / "log")
    flip(tmp_path / "log", _entry_key(last))
    status, errors = ended(path)
    assert status == EXIT_STORAGE
    assert f"entry {last} is corrupt: entry {last}: payload checksum mismatch" in errors
    assert REMEDY in errors


def test_a_flipped_bit_in_the_hard_state(path: Path, tmp_path: Path) -> None:
    flip(tmp_path / "log", b"mhard")
    status, errors = ended(path)
    assert status == EXIT_STORAGE
    assert "record mhard is corrupt" in errors
    assert REMEDY in errors


def test_a_hard_state_that_is_gone(path: Path, tmp_path: Path) -> None:
    change(tmp_path / "log", b"mhard", None)
    status, errors = ended(path)
    assert status == EXIT_STORAGE
    assert "but record mhard of 0" in errors


def test_a_flipped_bit_that_is_found_when_it_is_read(path: Path, tmp_path: Path) -> None:
    """In the middle of the log, where a start does not look."""
    last = last_index(tmp_path / "log")
    flip(tmp_path / "log", _entry_key(last - 1))
    reading = (
        "import asyncio, sys\nfrom mysqlraft.cli import main\nfrom mysqlraft.raft.node import Node\n"
        "start = Node.start\n"
        "async def read(node):\n"
        f"    await node.wait_committed({last})\n"
        "    node.committed_entries(1, 1 << 20)\n"
        "async def starting(node):\n"
        "    await start(node)\n"
        "    node.reading = asyncio.create_task(read(node))\n"
        "    node.reading.add_done_callback(lambda task: task.exception())\n"
        "Node.start = starting\n"
    )
    status, errors = ended(path, program=(sys.executable, "-c", reading + RUN))
    assert status == EXIT_STORAGE
    assert f"entry {last - 1} is corrupt" in errors
    assert REMEDY in errors


def test_a_log_shorter_than_what_was_committed(path: Path, tmp_path: Path) -> None:
    last = last_index(tmp_path / "log")
    store = LevelDBStore(tmp_path / "log", "test", 1)
    store.write([Write(commit=last)])
    store.close()
    change(tmp_path / "log", _entry_key(last), None)
    status, errors = ended(path)
    assert status == EXIT_STORAGE
    assert f"the log ends at {last - 1}, but everything up to {last} was committed" in errors
    assert REMEDY in errors


def test_a_damaged_leveldb(path: Path, tmp_path: Path) -> None:
    files = (tmp_path / "log" / "log").glob("*.log")
    log = max(files, key=lambda file: file.stat().st_size)
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 0xFF
    log.write_bytes(data)
    status, errors = ended(path)
    assert status == EXIT_STORAGE
    assert "LevelDB cannot be opened: Corruption: " in errors
    assert REMEDY in errors


def test_a_newer_format(path: Path, tmp_path: Path) -> None:
    change(tmp_path / "log", b"mformat", _sealed(msgpack.packb([FORMAT_VERSION + 1, "test", 1])))
    status, errors = ended(path)
    assert status == EXIT_CONFIGURATION
    assert f"has format version {FORMAT_VERSION + 1}; this mysqlraft knows {FORMAT_VERSION}" in errors


@pytest.mark.parametrize(("cluster", "site"), [("other", 1), ("test", 2)])
def test_the_directory_of_another_cluster_or_site(cluster: str, site: int, tmp_path: Path) -> None:
    members = Configuration([Server(site, "tokyo", "127.0.0.1:7450")])
    store = LevelDBStore(tmp_path / "log", cluster, site)
    first = Entry(1, 1, EntryKind.CONFIGURATION, payload=members.encode())
    store.write([Write(HardState(1), [first], bootstrap=members)])
    store.close()
    status, errors = ended(settings(tmp_path))
    assert status == EXIT_CONFIGURATION
    assert f"belongs to site {site} of cluster '{cluster}', this is site 1 of cluster 'test'" in errors


def test_an_end_that_was_torn_off_is_cut(path: Path, tmp_path: Path) -> None:
    """A write that the machine's end interrupted: nobody was told of it, so the log ends before it, and goes on."""
    store = LevelDBStore(tmp_path / "log", "test", 1)
    last = store.last_index
    (log,) = (tmp_path / "log" / "log").glob("*.log")
    before = log.stat().st_size
    chain = store.entries(last, last, 1)[0].chain
    for index in (last + 1, last + 2):
        entry = Entry(index, store.hard_state.term, EntryKind.DATA, 1, 1, index, b"y" * 5000, chain)
        chain = entry.chain
        store.write([Write(entries=[entry])])
    store.close()
    whole = log.read_bytes()
    one = before + (len(whole) - before) // 2
    for torn in (len(whole) - 1, len(whole) - 2000, one + 3):
        log.write_bytes(whole[:torn])
        # As it is opened it is written anew: each time from what there was.
        kept = {file: file.read_bytes() for file in log.parent.iterdir()}
        assert last_index(tmp_path / "log") == last + 1, torn
        for file in set(log.parent.iterdir()) - set(kept):
            file.unlink()
        for file, content in kept.items():
            file.write_bytes(content)
    with running(path) as daemon:
        assert daemon.stderr is not None
        assert any("role=leader" in line for line in daemon.stderr)
        daemon.terminate()
        assert daemon.wait(20) == 0
