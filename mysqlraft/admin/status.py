"""What a daemon knows of its cluster, as plain data: pure functions from facts to what /status and its kin show.

Every site makes one *row* about itself and tells it to all others (`own_row`); a status is those rows side by side
(`cluster_status`), each with its age. docs/operations.md explains the fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import UnionType
from typing import Any

import msgpack

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
    CAPTURE_STOPPED = "capture stopped"
    """The other sites do not get what applications write here until somebody has fixed the reason; apply goes on."""
    STOPPING = "stopping"
    JOINING = "joining"
    """Not a member yet: replication begins when it is one."""
    REMOVED = "removed"
    """Not a member any more: nothing is captured or applied."""
    SILENT = "silent"
    """Another site that this one does not hear of; the rest of its row is what it said last."""


STOPPED = (State.STOPPED, State.CAPTURE_STOPPED)
"""Those that a reload tries to leave."""


def own_row(config: Config, node: Mapping[str, Any], replica: Mapping[str, Any]) -> Row:
    """This site's row. ``node`` is `Node.status`, ``replica`` what the replica process and its supervisor report."""
    own = config.own
    applied = replica.get("applied")
    state, reason = replica["state"], replica["reason"]
    if (membership := node.get("membership", "member")) != "member":
        state, reason = State(membership), node["membership_reason"]
    return {
        "id": own.id,
        "name": own.name,
        **_standing(config, node, own.id),
        "version": __version__,
        "server": replica.get("server"),
        "names_ignore_case": replica.get("names_ignore_case"),
        "role": node["role"],
        "term": node["term"],
        "commit_index": node["commit_index"],
        "state": state,
        "reason": reason,
        "applied": applied,
        "lag": {
            "entries": None if applied is None else max(0, node["commit_index"] - applied),
            "seconds": replica.get("lag_seconds"),
        },
        "pending": replica.get("pending"),
        "conflicts": replica.get("conflicts"),
        "capture": replica.get("capture"),
        "units": replica.get("units"),
        "left_out": replica.get("left_out") or {},
        "checks": replica.get("checks") or [],
        "replicate": [list(config.replicate.include), list(config.replicate.exclude)],
        "policy": config.apply.policy,
    }


_TOLD: Mapping[str, type | UnionType] = {
    "role": str, "state": str, "reason": str, "commit_index": int, "applied": int, "lag": dict, "pending": int,
    "conflicts": int, "capture": dict, "units": dict, "left_out": dict, "checks": list,
}  # fmt: skip
"""What of another site's row is relied upon here; all but the state may be None, or missing."""
_LAG: Mapping[str, type | UnionType] = {"entries": int, "seconds": int | float}


def heard_row(told: bytes) -> Row | None:
    """The row that another site tells, encoded; None if that is no row as this version knows them, or if it holds what
    JSON cannot: then nobody here could be shown a status."""
    try:
        row = msgpack.unpackb(told)
        json.dumps(row, allow_nan=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("state"), str):
        return None
    row = dict.fromkeys(_TOLD) | row
    if not _fits(row, _TOLD) or not _fits(row["lag"] or {}, _LAG):
        return None
    return row


def _fits(told: Row, kinds: Mapping[str, type | UnionType]) -> bool:
    return all(isinstance(told.get(key), kind | None) for key, kind in kinds.items())


def cluster_status(
    config: Config,
    node: Mapping[str, Any],
    replica: Mapping[str, Any],
    heard: Callable[[int], tuple[Row, float] | None],
) -> dict[str, Any]:
    """The whole of /status. ``heard(site id)`` is the last row that a site sent, and its age in seconds."""
    members = node.get("members") or {site.id: {"name": site.name} for site in config.cluster.sites}
    names = {site: member["name"] for site, member in members.items()} | {config.own.id: config.site}
    mine = own_row(config, node, replica)
    rows = []
    for site, name in sorted(names.items()):
        if site == config.own.id:
            rows.append({**mine, "age": replica.get("age", 0.0), "connected": True, "rtt_ms": 0.0, "problem": None})
            continue
        peer = node["peers"].get(site, {})
        told = heard(site)
        problem = f": {peer['problem']}" if peer.get("problem") else ""
        never = {"state": State.SILENT, "reason": f"nothing heard of it yet{problem}", "applied": None}
        row = told[0] if told else never
        row = {**row, "id": site, "name": name, **_standing(config, node, site), "age": told and round(told[1], 3)}
        row |= {key: peer.get(key) for key in ("connected", "rtt_ms", "problem")}
        if told and told[1] > SILENT_AFTER:
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
        "configuration_index": node.get("configuration_index"),
        "transfer": names.get(node.get("transfer") or 0),
        "notes": [
            *([note] if (note := file_difference(config, node)) else []),
            *(
                f"log index {index}: {names.get(site, site)} broke the protocol, and its session is void: {reason}"
                for index, site, reason in replica.get("void", [])
            ),
            *_left_out(rows),
        ],
        "sites": rows,
        "raft": dict(node),
        "replica": dict(replica),
    }


def _standing(config: Config, node: Mapping[str, Any], site: int) -> Row:
    """What the site is in the cluster: by the configuration in the log, or else by the file."""
    member = node.get("members", {}).get(site)
    if member is None:
        written = next((each for each in config.cluster.sites if each.id == site), None)
        member = {key: getattr(written, key, None) for key in ("voter", "witness", "priority")}
    return {key: member[key] for key in ("voter", "witness", "priority")}


def file_difference(config: Config, node: Mapping[str, Any]) -> str:
    """Where the file's sites and the members in the log differ."""
    members = node.get("members")
    if not members:
        return ""
    found = []
    for site in config.cluster.sites:
        member = members.get(site.id)
        if member is None:
            if not site.join:
                found.append(f"{site.name} is no member")
            continue
        for key in ("name", "address", "voter", "witness", "priority"):
            written = str(site.address) if key == "address" else getattr(site, key)
            if written != member[key] and not (key == "voter" and site.join):
                found.append(f"{site.name} has {key} {_yaml(written)} there, {_yaml(member[key])} in the log")
    written_ids = [site.id for site in config.cluster.sites]
    found += [f"{member['name']} is a member" for site, member in members.items() if site not in written_ids]
    if not found:
        return ""
    return f"cluster.sites in the file is not what the log holds, which counts: {'; '.join(found)}"


def _left_out(rows: list[Row]) -> list[str]:
    return [
        f"{row['name']}: {count} rows of {table}, written while it had no primary key, are at that site only"
        for row in rows
        for table, count in sorted((row.get("left_out") or {}).items())
    ]


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _difference(mine: Row, other: Row) -> str:
    """What must be the same at every site, and is not."""
    keys = [key for key in ("replicate", "policy") if mine[key] != other.get(key)]
    found = f"its configuration differs from this site's in {', '.join(keys)}" if keys else ""
    cases = mine["names_ignore_case"], other.get("names_ignore_case")
    if None not in cases and cases[0] is not cases[1]:
        names = "its server and this site's differ in lower_case_table_names: a table may not be found by its name"
        found = "; ".join(filter(None, (found, names)))
    return found


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
    if row["witness"]:
        return ""
    lag = row["lag"]["seconds"]
    if lag is None or lag > READY_LAG:
        return f"applying what other sites did {'-' if lag is None else format(lag, '.1f')} s ago"
    return ""
