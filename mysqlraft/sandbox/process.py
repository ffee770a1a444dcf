"""Child processes that cannot outlive the process that started them, however that ends.

Linux sends a child its parent-death signal when the *thread* that forked it ends. All children are therefore forked
by one thread that lives as long as the process; callers may come and go in threads of their own.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any, cast

# Runs in the child, in place of a preexec_fn (which may deadlock in a process with threads): asks for SIGKILL at the
# parent's death, checks that the parent had not died before that, and becomes the wanted program.
_BIND_AND_EXEC = """
import ctypes, os, sys
ctypes.CDLL(None, use_errno=True).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process is gone")
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"cannot run {sys.argv[2]}: {error.strerror}")
"""

_Job = tuple["Future[subprocess.Popen[bytes]]", Sequence[str], dict[str, Any]]


class _Spawner:
    """The thread that forks. Belongs to one process: after a fork of that process it is made anew."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="spawner", daemon=True).start()

    def submit(self, argv: Sequence[str], options: dict[str, Any]) -> Future[subprocess.Popen[bytes]]:
        future: Future[subprocess.Popen[bytes]] = Future()
        self._jobs.put((future, argv, options))
        return future

    def _run(self) -> None:
        while True:
            future, argv, options = self._jobs.get()
            try:
                future.set_result(cast("subprocess.Popen[bytes]", subprocess.Popen(argv, **options)))
            except BaseException as error:
                future.set_exception(error)


_spawner: _Spawner | None = None
_spawner_lock = threading.Lock()


def spawn_bound(
    argv: Sequence[str],
    *,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Starts `argv` so that it is killed (SIGKILL) when this process ends for whatever reason.

    The child leads a session of its own: a Ctrl-C at the terminal reaches this process alone, which then decides in
    what order its children end. A program that changes its user after the start loses the binding (prctl(2)).
    """
    global _spawner
    with _spawner_lock:
        if _spawner is None or _spawner.pid != os.getpid():
            _spawner = _Spawner()
        spawner = _spawner
    wrapped = [sys.executable, "-I", "-S", "-c", _BIND_AND_EXEC, str(os.getpid()), *argv]
    options: dict[str, Any] = {
        "stdin": stdin,
        "stdout": stdout,
        "stderr": stderr,
        "env": None if env is None else dict(env),
        "cwd": cwd,
        "start_new_session": True,
    }
    return spawner.submit(wrapped, options).result()
