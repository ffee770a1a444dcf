"""The status as Prometheus text (version 0.0.4).

Written out by hand: a dozen gauges and counters of which the values are at hand. The client library would bring
registries, locks and collectors, and some megabytes, for what is one function here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mysqlraft.admin.status import State, own

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics(status: Mapping[str, Any]) -> str:
    """All metrics of one site; what is not known is left out."""
    return "\n".join(_lines(status)) + "\n"


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    row, raft, replica = own(status), status["raft"], status["replica"]
    lag, units = row["lag"], row.get("units") or {}
    yield from _metric(
        "info",
        "gauge",
        "What runs here.",
        {"site": row["name"], "version": status["version"], "server": row["server"] or ""},
        1,
    )
    states = [({"state": state.value}, int(row["state"] == state)) for state in State]
    yield from _family("state", "gauge", "Replication's state at this site: 1 for the one it is in.", states)
    yield from _metric("is_leader", "gauge", "Whether this site leads.", {}, int(raft["role"] == "leader"))
    yield from _metric("has_leader", "gauge", "Whether a leader is known here.", {}, int(status["leader"] is not None))
    yield from _metric("raft_term", "gauge", "Raft's term.", {}, raft["term"])
    configuration = status["configuration_index"]
    yield from _metric(
        "configuration_index", "gauge", "The log index of the members that are in force.", {}, configuration
    )
    handing = int(status["transfer"] is not None)
    yield from _metric("transferring", "gauge", "Whether leadership is being handed over.", {}, handing)
    yield from _metric("commit_index", "counter", "The last committed log index known here.", {}, raft["commit_index"])
    yield from _metric("applied_index", "counter", "The log index that this site's tables hold.", {}, row["applied"])
    yield from _metric("lag_entries", "gauge", "Committed entries not yet applied here.", {}, lag["entries"])
    yield from _metric("lag_seconds", "gauge", "How old what is applied next is.", {}, lag["seconds"])
    yield from _metric(
        "pending_units", "gauge", "Own units captured and not yet back from the log.", {}, row["pending"]
    )
    yield from _metric(
        "conflicts_total", "counter", "Conflicts in the history, all sites' alike.", {}, row["conflicts"]
    )
    for name, meaning in (
        ("captured", "Local transactions captured since the replica process started."),
        ("applied", "Units applied since the replica process started."),
    ):
        yield from _metric(f"units_{name}_total", "counter", meaning, {}, units.get(name))
    for name, meaning in (
        ("left_out", "Rows that were not written, as local transactions that come later wrote them."),
        ("in_full", "Rows of own units written in full although later units write them too, or may do so."),
    ):
        yield from _metric(f"rows_{name}_total", "counter", meaning, {}, units.get(f"rows_{name}"))
    ended = (replica.get("apply") or {}).get("yielded")
    meaning = "Connections of the application that were ended because apply waited for a row of theirs."
    yield from _metric("connections_ended_total", "counter", meaning, {}, ended)
    yield from _raft(raft)
    outstanding = raft["outstanding_bytes"]
    yield from _metric("outstanding_bytes", "gauge", "Bytes proposed and not yet committed.", {}, outstanding)
    restarts = replica.get("restarts")
    yield from _metric("replica_restarts_total", "counter", "Unwanted ends of the replica process.", {}, restarts)
    others = [one for one in status["sites"] if one is not row]
    labelled = [({"peer": one["name"]}, one) for one in others]
    connected = [(label, int(bool(one["connected"]))) for label, one in labelled]
    yield from _family("peer_connected", "gauge", "Whether the links to another site are up.", connected)
    trips = [(label, one["rtt_ms"] / 1000) for label, one in labelled if one["rtt_ms"] is not None]
    yield from _family("peer_round_trip_seconds", "gauge", "The last round trip to another site.", trips)
    for name, key, meaning in (
        ("match_index", "match", "The leader's view: up to where another site has the log on disk."),
        ("inflight_bytes", "inflight_bytes", "The leader's view: log entries on their way to another site."),
    ):
        known = [
            ({"peer": one["name"]}, peer[key])
            for one in others
            if (peer := raft["peers"].get(one["id"])) is not None and peer.get(key) is not None
        ]
        yield from _family(f"peer_{name}", "gauge", meaning, known)
    yield from _log(status, {one["id"]: one["name"] for one in others})


def _log(status: Mapping[str, Any], names: Mapping[int, str]) -> Iterator[str]:
    """Where the log begins and ends, and the snapshots that are on their way."""
    raft = status["raft"]
    yield from _metric("log_first_index", "counter", "The first entry of the log here.", {}, raft.get("first_index"))
    yield from _metric("log_last_index", "gauge", "The last entry of the log here.", {}, raft.get("last_index"))
    receiving = raft.get("receiving") or {}
    for key, meaning in (
        ("received", "Bytes here of the snapshot that arrives."),
        ("bytes", "Bytes of the whole snapshot that arrives."),
    ):
        yield from _metric(f"snapshot_receiving_{key}", "gauge", meaning, {}, receiving.get(key))
    sending = [
        ({"peer": names.get(site, str(site))}, snapshot)
        for site, peer in raft["peers"].items()
        if (snapshot := peer.get("snapshot"))
    ]
    for key, meaning in (
        ("sent", "Bytes that a site has of the snapshot it gets."),
        ("bytes", "Bytes of the whole snapshot that a site gets."),
    ):
        samples = [(label, snapshot[key]) for label, snapshot in sending]
        yield from _family(f"peer_snapshot_{key}", "gauge", meaning, samples)


def _raft(raft: Mapping[str, Any]) -> Iterator[str]:
    """What consensus counts and measures; nothing of it is known before it runs."""
    if (counters := raft.get("counters")) is None:
        return
    roles = [({"role": role}, count) for role, count in counters["roles"].items()]
    yield from _family("raft_role_changes_total", "counter", "How often this site entered a role.", roles)
    elections = counters["roles"]["candidate"]
    yield from _metric("raft_elections_total", "counter", "Elections that this site stood for.", {}, elections)
    leaders = counters["leaders"]
    yield from _metric("raft_leader_changes_total", "counter", "How often another leader became known.", {}, leaders)
    yield from _histogram(
        "raft_append_seconds", "From handing a batch to the log's disk until it is durable.", counters["write_seconds"]
    )
    yield from _histogram(
        "raft_commit_seconds",
        "While this site leads: from taking a batch of proposals until it is committed.",
        counters["commit_seconds"],
    )
    yield from _metric("raft_log_bytes", "gauge", "About what the log takes on disk.", {}, raft["log_bytes"])
    entries = raft["last_index"] - raft["first_index"] + 1
    yield from _metric("raft_log_entries", "gauge", "Entries in the log.", {}, entries)
    contact = raft["last_contact_ms"] / 1000
    yield from _metric("raft_last_contact_seconds", "gauge", "How long ago the leader was heard.", {}, contact)
    stalled = int(raft["storage_stalled"])
    yield from _metric("raft_storage_stalled", "gauge", "Whether the log's disk makes no progress.", {}, stalled)


def _histogram(name: str, meaning: str, measured: Mapping[str, Any]) -> Iterator[str]:
    yield f"# HELP mysqlraft_{name} {meaning}"
    yield f"# TYPE mysqlraft_{name} histogram"
    for bound, count in (*measured["buckets"], ("+Inf", measured["count"])):
        yield f'mysqlraft_{name}_bucket{{le="{bound}"}} {count}'
    yield f"mysqlraft_{name}_sum {measured['sum']}"
    yield f"mysqlraft_{name}_count {measured['count']}"


def _metric(name: str, kind: str, meaning: str, labels: Mapping[str, Any], value: float | None) -> Iterator[str]:
    return _family(name, kind, meaning, [] if value is None else [(labels, value)])


def _family(
    name: str, kind: str, meaning: str, samples: list[tuple[dict[str, str], Any]] | list[tuple[Mapping[str, Any], Any]]
) -> Iterator[str]:
    if not samples:
        return
    yield f"# HELP mysqlraft_{name} {meaning}"
    yield f"# TYPE mysqlraft_{name} {kind}"
    for labels, value in samples:
        shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        yield f"mysqlraft_{name}{{{shown}}} {value}" if shown else f"mysqlraft_{name} {value}"


def _escaped(text: Any) -> str:
    return str(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
