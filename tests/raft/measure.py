"""python -m tests.raft.measure: commits a second and commit latency of a cluster of processes on loopback.

Every node is a process with its own LevelDB, synced before anything counts, and its own client, which keeps a share of
the outstanding proposals on the way. The benchmark that compares with other implementations is benchmarks/raft.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from mysqlraft.raft import Configuration, LevelDBStore, Node, Server, bootstrap


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


async def _load(node: Node, seconds: float, share: int, payload: bytes) -> dict[str, Any]:
    """Keep `share` proposals on the way for a while."""
    session = time.time_ns()
    sequence = 0
    began, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    first = node.commit_index
    while time.perf_counter() - began < seconds:
        for _ in range(share - node.outstanding_proposals):
            sequence += 1
            node.propose(session, sequence, payload)
        await node.wait_committed(node.commit_index + 1)
    used = resource.getrusage(resource.RUSAGE_SELF)
    took = time.perf_counter() - began
    commits = node.commit_index - first
    return {
        "commits_per_second": commits / took,
        "cpu_seconds_per_100000": (used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime) * 100_000 / commits,
    }


async def _latency(node: Node, count: int, payload: bytes) -> dict[str, Any]:
    """One proposal at a time, from here."""
    session = time.time_ns()
    times = []
    for sequence in range(1, count + 1):
        began = time.perf_counter()
        node.propose(session, sequence, payload)
        while node.outstanding_bytes:
            await node.wait_committed(node.commit_index + 1)
        times.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.002)
    times.sort()
    return {"p50_ms": times[len(times) // 2], "p99_ms": times[len(times) * 99 // 100]}


async def _serve(site: int, configuration: Configuration, directory: str, commands: Any, profile: str) -> None:
    store = LevelDBStore(Path(directory) / str(site), "measure", site)
    bootstrap(store, configuration)
    node = Node(site, "measure", store, configuration.servers[site].address)
    await node.start()
    loop = asyncio.get_running_loop()
    while True:
        command, *arguments = await loop.run_in_executor(None, commands.recv)
        if command == "stop":
            break
        if command == "role":
            commands.send((node.role.value, node.leader))
        elif command == "load":
            commands.send(await _profiled(_load(node, *arguments), profile and f"{profile}.{site}"))
        elif command == "latency":
            commands.send(await _latency(node, *arguments))
        elif command == "idle":
            began = resource.getrusage(resource.RUSAGE_SELF)
            await asyncio.sleep(arguments[0])
            ended = resource.getrusage(resource.RUSAGE_SELF)
            used = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
            commands.send({"idle_cpu_percent": 100 * used / arguments[0], "resident_mib": ended.ru_maxrss / 1024})
    await node.stop()
    store.close()


async def _profiled(work: Any, path: str) -> Any:
    if not path:
        return await work
    import cProfile

    profiler = cProfile.Profile()
    profiler.enable()
    try:
        return await work
    finally:
        profiler.disable()
        profiler.dump_stats(path)


def _process(site: int, configuration: Configuration, directory: str, commands: Any, profile: str) -> None:
    uvloop.run(_serve(site, configuration, directory, commands, profile))


def measure(nodes: int, size: int, outstanding: int, seconds: float, directory: str, profile: str) -> dict[str, Any]:
    ports = free_ports(nodes)
    configuration = Configuration(
        Server(site, f"site{site}", f"127.0.0.1:{ports[site - 1]}") for site in range(1, nodes + 1)
    )
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for site in range(1, nodes + 1):
        ours, theirs = context.Pipe()
        process = context.Process(target=_process, args=(site, configuration, directory, theirs, profile))
        process.start()
        pipes.append(ours)
        processes.append(process)

    def ask(pipe: Any, *command: Any) -> Any:
        pipe.send(command)
        return pipe.recv()

    def ask_all(*command: Any) -> list[Any]:
        for pipe in pipes:
            pipe.send(command)
        return [pipe.recv() for pipe in pipes]

    while not all(leader for _, leader in ask_all("role")):
        time.sleep(0.1)
    leader = ask(pipes[0], "role")[1]
    follower = leader % nodes + 1
    payload = b"\x00\xff" * (size // 2)
    loads = ask_all("load", seconds, max(1, outstanding // nodes), payload)
    result = {
        "nodes": nodes,
        "payload_bytes": size,
        "outstanding": outstanding,
        "commits_per_second": round(loads[0]["commits_per_second"]),
        "cpu_seconds_per_100000_commits": {
            "leader": round(loads[leader - 1]["cpu_seconds_per_100000"], 2),
            "follower": round(loads[follower - 1]["cpu_seconds_per_100000"], 2),
        },
        "latency_at_leader": ask(pipes[leader - 1], "latency", 300, payload),
        "latency_at_follower": ask(pipes[follower - 1], "latency", 300, payload),
        "idle": ask(pipes[leader - 1], "idle", 4.0),
    }
    for pipe in pipes:
        pipe.send(("stop",))
    for process in processes:
        process.join()
    return result


def sync_time(directory: str) -> float:
    """Milliseconds of one synced LevelDB write of 1 KB, the median."""
    import plyvel

    database = plyvel.DB(str(Path(directory) / "sync"), create_if_missing=True)
    times = []
    for number in range(200):
        began = time.perf_counter()
        database.put(b"%d" % number, b"x" * 1024, sync=True)
        times.append((time.perf_counter() - began) * 1000)
        time.sleep(0.002)
    database.close()
    return sorted(times)[len(times) // 2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.raft.measure", description=__doc__)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--outstanding", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--profile", default="", help="write cProfile statistics to this path, one a site")
    arguments = parser.parse_args()
    directory = tempfile.mkdtemp(prefix="measure-raft-")
    try:
        result = measure(
            arguments.nodes, arguments.size, arguments.outstanding, arguments.seconds, directory, arguments.profile
        )
        result["sync_ms"] = sync_time(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
