"""What a daemon knows of its cluster, as plain data: pure functions from facts to what /status and its kin show.

Every site makes one *row* about itself and tells it to all others (`own_row`); a status is those rows side by side
(`cluster_status`), each with its age. docs/operations.md explains the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from mysqlraft import __version__
from mysqlraft.config import Config

Row = dict[str, Any]

SILENT_AFTER = 5.0
"""Seconds after which a site that says nothing is shown as silent."""

READY_LAG = 5.0
"""Seconds of lag up to which a site counts as caught up."""


class State(StrEnum):
    """How replication is at a site. Every state but RUNNING comes with its reason."""

    STARTING = "starting"
    RUNNING = "running"
    RETRYING = "retrying"
    """Something failed that may pass, such as the server being down; it is tried again by itself."""
    STOPPED = "stopped"
    """Something failed that somebody has to mend."""
    STOPPING = "stopping"
    SILENT = "silent"
    """Another site that this one does not hear of; the rest of its row is what it said last."""


def own_row(config: Config, node: Mapping[str, Any], replica: Mapping[str, Any]) -> Row:
    """This site's row. ``node`` is `Node.status`, ``replica`` what the replica process and its supervisor report."""
    own = config.own
    applied = replica.get("applied")
    return {
        "id": own.id,
        "name": own.name,
        "voter": own.voter,
        "version": __version__,
        "server": replica.get("server"),
        "role": node["role"],
        "term": node["term"],
        "commit_index": node["commit_index"],
        "state": replica["state"],
        "reason": replica["reason"],
        "applied": applied,
        "lag": {
            "entries": None if applied is None else max(0, node["commit_index"] - applied),
            "seconds": replica.get("lag_seconds"),
        },
        "pending": replica.get("pending"),
        "conflicts": replica.get("conflicts"),
        "capture": replica.get("capture"),
        "units": replica.get("units"),
        "replicate": [list(config.replicate.include), list(config.replicate.exclude)],
        "policy": config.apply.policy,
    }


def cluster_status(
    config: Config,
    node: Mapping[str, Any],
    replica: Mapping[str, Any],
    heard: Callable[[int], tuple[Row, float] | None],
) -> dict[str, Any]:
    """The whole of /status. ``heard(site id)`` is the last row that a site sent, and its age in seconds."""
    names = {site.id: site.name for site in config.cluster.sites}
    mine = own_row(config, node, replica)
    rows = []
    for site in config.cluster.sites:
        if site.id == config.own.id:
            rows.append({**mine, "age": 0.0, "connected": True, "rtt_ms": 0.0, "problem": None})
            continue
        peer = node["peers"].get(site.id, {})
        told = heard(site.id)
        row = told[0] if told else {"state": State.SILENT, "reason": "nothing heard of it yet", "applied": None}
        row = {**row, "id": site.id, "name": site.name, "voter": site.voter, "age": told and round(told[1], 3)}
        row |= {key: peer.get(key) for key in ("connected", "rtt_ms", "problem")}
        if told and told[1] > SILENT_AFTER:
            problem = f": {peer['problem']}" if peer.get("problem") else ""
            row |= {"state": State.SILENT, "reason": f"not heard of for {told[1]:.0f} s{problem}"}
        elif told and (different := _difference(mine, row)):
            row["reason"] = "; ".join(filter(None, (row["reason"], different)))
        rows.append(row)
    return {
        "version": __version__,
        "cluster": config.cluster.id,
        "site": config.site,
        "leader": names.get(node["leader"]),
        "term": node["term"],
        "commit_index": max([node["commit_index"], *(row.get("commit_index") or 0 for row in rows)]),
        "sites": rows,
        "raft": dict(node),
        "replica": dict(replica),
    }


def _difference(mine: Row, other: Row) -> str:
    """What must be the same at every site, and is not."""
    found = [key for key in ("replicate", "policy") if mine[key] != other.get(key)]
    return f"its configuration differs from this site's in {', '.join(found)}" if found else ""


def own(status: Mapping[str, Any]) -> Row:
    """The row of the site that the status is from."""
    row: Row = next(row for row in status["sites"] if row["name"] == status["site"])
    return row


def unready(status: Mapping[str, Any]) -> str:
    """Why the site is not to be relied on now; empty when it captures and has caught up."""
    row = own(status)
    if row["state"] != State.RUNNING:
        return f"{row['state']}: {row['reason']}"
    if status["leader"] is None:
        return "no leader is known"
    lag = row["lag"]["seconds"]
    if lag is None or lag > READY_LAG:
        return f"applying what other sites did {'-' if lag is None else format(lag, '.1f')} s ago"
    return ""
