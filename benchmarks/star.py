"""Native asynchronous replication: one source, several replicas, as the servers do it out of the box.

The peer of the lag benchmark. The servers are the sandbox's own: durable binlogs at the source and at the replicas,
the server's default number of applier workers, GTID positions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from mysqlraft.sandbox.servers import Server


def follow(source: Server, replicas: Sequence[Server]) -> None:
    """Makes `replicas` follow `source`, and returns when all of them do."""
    host, port = source.address
    if source.engine == "mysql":
        change = (
            "CHANGE REPLICATION SOURCE TO SOURCE_HOST = %s, SOURCE_PORT = %s, SOURCE_USER = %s, SOURCE_PASSWORD = %s,"
            " SOURCE_AUTO_POSITION = 1, GET_SOURCE_PUBLIC_KEY = 1"
        )
        start = "START REPLICA"
    else:
        change = (
            "CHANGE MASTER TO MASTER_HOST = %s, MASTER_PORT = %s, MASTER_USER = %s, MASTER_PASSWORD = %s,"
            " MASTER_USE_GTID = slave_pos"
        )
        start = "START SLAVE"
    for replica in replicas:
        with replica.connect() as connection, connection.cursor() as cursor:
            cursor.execute(change, (host, port, source.user, source.password))
            cursor.execute(start)
    with source.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE native_ready")
    deadline = time.monotonic() + 30
    for replica in replicas:
        with replica.connect() as connection, connection.cursor() as cursor:
            while not cursor.execute("SHOW DATABASES LIKE 'native_ready'"):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{replica} does not replicate from {source}: {_state(replica)}")
                time.sleep(0.02)


def _state(replica: Server) -> str:
    """What the replica says is wrong."""
    word = "REPLICA" if replica.engine == "mysql" else "SLAVE"
    with replica.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"SHOW {word} STATUS")
        row = cursor.fetchone() or ()
        names = [column[0] for column in cursor.description or ()]
    return "; ".join(f"{name}: {value}" for name, value in zip(names, row, strict=False) if "Error" in name and value)
