"""Who is compared: this project's log, and its peers, each made ready and started in the way that is best for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from benchmarks.raft.processes import Cluster, Program
from mysqlraft.certificates import make
from mysqlraft.raft.limits import Limits
from mysqlraft.sandbox.installation import cache_directory
from mysqlraft.sandbox.links import Links
from mysqlraft.sandbox.ports import LOOPBACK, reserve_port

PROGRAMS = Path(__file__).parent / "programs"
GO_PATH = Path("/usr/share/gocode")
"""Where Debian's packages of Go libraries are."""
CACHE = "benchmarks"


class Missing(Exception):
    """A contender cannot be had. Says what to do about it."""


class Contender(Protocol):
    name: str
    packages: tuple[str, ...]
    """Debian's, that it needs."""

    def prepare(self) -> None:
        """Install or build it into the cache, if it is not there yet. Raises Missing."""

    def start(self, nodes: int, directory: Path, stack: ExitStack) -> Cluster:
        """A new cluster, whose nodes keep what they have in `directory`; `stack` gets what ends with it."""


def python(program: str, *arguments: object, path: str = "") -> Program:
    return Program(sys.executable, "-m", f"benchmarks.raft.programs.{program}", *map(str, arguments), path=path)


def ports(count: int, stack: ExitStack) -> list[str]:
    """Addresses on loopback."""
    leases = [reserve_port() for _ in range(count)]
    for lease in leases:
        stack.callback(lease.release)
    return [f"{LOOPBACK}:{lease.port}" for lease in leases]


class Ours:
    packages: tuple[str, ...] = ()

    def __init__(
        self,
        name: str = "ours",
        tls: bool = False,
        round_trip: float = 0.0,
        tick: float = 0.1,
        window: int = Limits().window_bytes,
    ) -> None:
        """`round_trip`: seconds that a message and its answer take, over relays; 0 for none. `window`: bytes on the way
        to each other node."""
        self.name = name
        self._tls = tls
        self._round_trip = round_trip
        self._tick = tick
        self._window = window

    def prepare(self) -> None:
        pass

    def start(self, nodes: int, directory: Path, stack: ExitStack) -> Cluster:
        addresses = ports(nodes, stack)
        sites = range(1, nodes + 1)
        certificates = directory / "certificates" if self._tls else ""
        if self._tls:
            make(directory / "certificates", "benchmark", [f"site{site}" for site in sites])
        links = Links()
        stack.callback(links.close)
        if self._round_trip:
            targets = {site: (LOOPBACK, int(addresses[site - 1].rpartition(":")[2])) for site in sites}
            links.start(targets, self._round_trip / 2)

        def reached(own: int, other: int) -> str:
            if own == other or not self._round_trip:
                return addresses[other - 1]
            host, port = links.address(own, other)
            return f"{host}:{port}"

        programs = [
            python(
                "ours", directory / str(site), site, self._tick, self._window, certificates,
                *[f"{addresses[other - 1]}/{reached(site, other)}" for other in sites],
            )
            for site in sites
        ]  # fmt: skip
        return Cluster(programs, programs)


class PySyncObj:
    name = "pysyncobj"
    packages: tuple[str, ...] = ()
    VERSION = "0.3.17"

    def __init__(self) -> None:
        self._path = cache_directory() / CACHE / f"pysyncobj-{self.VERSION}"

    def prepare(self) -> None:
        if (self._path / "pysyncobj").is_dir():
            return
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(self._path)]
        installed = subprocess.run([*command, f"pysyncobj=={self.VERSION}"], capture_output=True, text=True)
        if installed.returncode:
            raise Missing(f"pip cannot install it into {self._path}: {installed.stderr.strip()[-500:]}")

    def start(self, nodes: int, directory: Path, stack: ExitStack) -> Cluster:
        addresses = ports(nodes, stack)
        programs = []
        for own in addresses:
            place = directory / own.rpartition(":")[2]
            place.mkdir()
            others = [each for each in addresses if each != own]
            programs.append(python("pysyncobj", place, own, *others, path=str(self._path)))
        return Cluster(programs, programs)


def go(name: str, libraries: Sequence[str]) -> Path:
    """The program programs/NAME/main.go, built. Raises Missing."""
    source, program = PROGRAMS / name, cache_directory() / CACHE / name
    if shutil.which("go") is None:
        raise Missing("there is no go on the PATH")
    for library in libraries:
        if not (GO_PATH / "src" / library).is_dir():
            raise Missing(f"{GO_PATH / 'src' / library} is not there")
    if program.exists() and program.stat().st_mtime >= (source / "main.go").stat().st_mtime:
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": str(GO_PATH)}
    built = subprocess.run(
        ["go", "build", "-o", str(program), "."], cwd=source, env=environment, capture_output=True, text=True
    )
    if built.returncode:
        raise Missing(f"programs/{name}/main.go cannot be built: {built.stderr.strip()[-500:]}")
    return program


class Hashicorp:
    name = "hashicorp"
    packages: tuple[str, ...] = (
        "golang-go",
        "golang-github-hashicorp-raft-dev",
        "golang-github-hashicorp-raft-boltdb-dev",
    )

    def prepare(self) -> None:
        go("hashicorp", ["github.com/hashicorp/raft", "github.com/hashicorp/raft-boltdb"])

    def start(self, nodes: int, directory: Path, stack: ExitStack) -> Cluster:
        program = str(cache_directory() / CACHE / "hashicorp")
        addresses = ports(nodes, stack)
        programs = []
        for own in addresses:
            place = directory / own.rpartition(":")[2]
            place.mkdir()
            programs.append(Program(program, str(place), own, *addresses))
        return Cluster(programs, programs, leader_only=True)


class Etcd:
    name = "etcd"
    packages: tuple[str, ...] = ("etcd-server", "golang-go", "golang-etcd-server-dev")

    def prepare(self) -> None:
        if shutil.which("etcd") is None:
            raise Missing("there is no etcd on the PATH")
        go("etcd", ["go.etcd.io/etcd/clientv3"])

    def start(self, nodes: int, directory: Path, stack: ExitStack) -> Cluster:
        clients = [f"http://{address}" for address in ports(nodes, stack)]
        peers = [f"http://{address}" for address in ports(nodes, stack)]
        members = ",".join(f"node{number}={url}" for number, url in enumerate(peers))
        servers = [
            Program(
                "etcd", "--name", f"node{number}", "--data-dir", str(directory / f"node{number}"),
                "--listen-client-urls", client, "--advertise-client-urls", client,
                "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                "--initial-cluster", members, "--initial-cluster-state", "new",
                "--log-level", "error", "--quota-backend-bytes", str(8 << 30),
            )
            for number, (client, peer) in enumerate(zip(clients, peers, strict=True))
        ]  # fmt: skip
        client = Program(str(cache_directory() / CACHE / "etcd"), *clients)
        return Cluster(servers, [client])
