"""Status, readiness and metrics as functions of what the daemon knows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgpack
import pytest

from mysqlraft import config
from mysqlraft.admin.metrics import metrics
from mysqlraft.admin.status import Row, cluster_status, heard_row, own_row, unready
from mysqlraft.cli.status import lines
from mysqlraft.config import Config
from mysqlraft.raft.counters import Counters
from mysqlraft.raft.roles import Role, Transition

TEXT = """\
cluster:
  id: test
  sites:
    - {{id: 1, name: tokyo, address: "127.0.0.1:7450"}}
    - {{id: 2, name: oslo, address: "127.0.0.1:7460"}}
    - {{id: 3, name: lima, address: "127.0.0.1:7470", voter: false}}
site: {site}
data_dir: data
insecure: true
mysql: {{user: root}}
{more}
"""


def settings(site: str = "tokyo", more: str = "") -> Config:
    return config.parse(TEXT.format(site=site, more=more), Path("test.yaml"))


def node(**changes: Any) -> dict[str, Any]:
    peer = {"connected": True, "problem": None, "rtt_ms": 1.5, "match": 1190, "inflight_bytes": 4096}
    counters = Counters()
    counters.transition(Transition(Role.CANDIDATE, 3, 0, "nothing heard"))
    counters.transition(Transition(Role.LEADER, 3, 1, "elected"))
    counters.writes.observe(0.002)
    return {
        "role": "leader",
        "term": 3,
        "leader": 1,
        "commit_index": 1200,
        "outstanding_bytes": 17,
        "first_index": 1,
        "last_index": 1205,
        "last_contact_ms": 0,
        "storage_stalled": False,
        "log_bytes": 70_000,
        "counters": counters.to_dict(),
        "peers": {2: dict(peer), 3: dict(peer)},
        **changes,
    }


def replica(**changes: Any) -> dict[str, Any]:
    return {
        "state": "running",
        "reason": "",
        "server": "mysql 9.7.4",
        "applied": 1198,
        "lag_seconds": 0.25,
        "pending": 2,
        "conflicts": 5,
        "capture": {"file": "binlog.000002", "offset": 157, "gtids": "", "base": 1190},
        "units": {"captured": 40, "applied": 90, "careful": 3, "rows_left_out": 0, "rows_in_full": 0},
        "apply": {"yielded": 0},
        "restarts": 1,
        "pid": 77,
        **changes,
    }


def status(told: dict[int, tuple[Row, float]] | None = None, **changes: Any) -> dict[str, Any]:
    if told is None:
        told = {
            2: (own_row(settings("oslo"), node(role="follower", commit_index=1201), replica(applied=1200)), 0.4),
            3: (own_row(settings("lima"), node(role="follower"), replica(applied=1000)), 0.2),
        }
    return cluster_status(settings(), node(), replica(**changes), told.get)


def test_all_sites_side_by_side() -> None:
    found = status()
    assert (found["leader"], found["term"], found["commit_index"]) == ("tokyo", 3, 1201)
    tokyo, oslo, lima = found["sites"]
    assert tokyo["lag"] == {"entries": 2, "seconds": 0.25}
    assert (tokyo["age"], oslo["age"]) == (0.0, 0.4)
    assert (oslo["role"], oslo["lag"]["entries"], oslo["rtt_ms"]) == ("follower", 1, 1.5)
    assert (lima["voter"], lima["lag"]["entries"]) == (False, 200)
    text = "\n".join(lines(found))
    print(text)
    assert "cluster test: leader tokyo, term 3, committed 1,201" in text
    assert re.search(r"tokyo +leader +1,198 +2 +0\.2 s +2 +5 +binlog.000002:157 +running$", text, re.M)
    assert "follower (nonvoter)" in text


def test_a_site_that_was_never_heard_of() -> None:
    found = status({})
    assert [row["state"] for row in found["sites"]] == ["running", "silent", "silent"]
    assert found["sites"][1]["reason"] == "nothing heard of it yet"
    assert re.search(r"oslo +- +- +- +- +- +- +- +silent: nothing heard of it yet", "\n".join(lines(found)))


def test_a_row_is_heard_as_it_was_told() -> None:
    row = own_row(settings("oslo"), node(role="follower"), replica(checks=[(1024, "a b")]))
    again = heard_row(msgpack.packb(row))
    assert again == {**row, "checks": [[1024, "a b"]]}
    assert heard_row(msgpack.packb({**row, "lag": None, "colour": "red"})) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"checks": 5},
        {"commit_index": "x"},
        {"lag": 3},
        {"state": None},
        {"state": 1},
        {"capture": []},
        {"applied": 1.5},
        {"lag": {"entries": "x"}},
        {"lag": {"seconds": b"1"}},
        {"version": b"1"},
        {"new": [{b"1": 1}]},
        {"new": float("nan")},
        {"new": msgpack.Timestamp(1)},
    ],
    ids=str,
)
def test_what_is_no_row_harms_nothing(change: dict[str, Any]) -> None:
    """As from a site of another version."""
    row = own_row(settings("oslo"), node(role="follower"), replica())
    assert heard_row(msgpack.packb(row)) is not None
    assert heard_row(msgpack.packb({**row, **change})) is None


def test_a_row_of_which_little_is_known_is_shown() -> None:
    row = heard_row(msgpack.packb({"state": "running", "capture": {"file": "binlog.000001"}}))
    assert row is not None
    found = cluster_status(settings(), node(peers={2: {}}), replica(), lambda site: (row, 0.1))
    json.dumps(found)
    assert metrics(found)
    assert "configuration differs" in "\n".join(lines(found))


@pytest.mark.parametrize("told", [b"", b"\xc1", b"\x91" * 5000, msgpack.packb([1]), msgpack.packb({})], ids=repr)
def test_garbage_is_no_row(told: bytes) -> None:
    assert heard_row(told) is None


def test_a_site_that_cannot_be_reached_says_why() -> None:
    """Also when it never could: with a wrong certificate from the first day."""
    found = cluster_status(settings(), node(peers={2: {"problem": "no route"}}), replica(), lambda site: None)
    assert found["sites"][1]["reason"] == "nothing heard of it yet: no route"


def test_a_site_that_fell_silent_keeps_what_it_said() -> None:
    row = own_row(settings("oslo"), node(role="follower"), replica(applied=1100))
    found = cluster_status(
        settings(), node(peers={2: {"problem": "refused"}}), replica(), lambda site: (row, 61.4) if site == 2 else None
    )
    oslo = found["sites"][1]
    assert (oslo["state"], oslo["reason"], oslo["applied"]) == ("silent", "not heard of for 61 s: refused", 1100)


@pytest.mark.parametrize("more", ["replicate: {include: ['shop.*']}", "replicate: {exclude: ['*.log']}"])
def test_a_site_with_another_configuration_is_named(more: str) -> None:
    row = own_row(settings("oslo", more), node(role="follower"), replica())
    oslo = cluster_status(settings(), node(), replica(), lambda site: (row, 0.1) if site == 2 else None)["sites"][1]
    assert oslo["reason"] == "its configuration differs from this site's in replicate"


@pytest.mark.parametrize("case", [False, True])
def test_names_that_do_not_compare_alike(case: bool) -> None:
    def heard(site: int) -> tuple[Row, float]:
        name = "oslo" if site == 2 else "lima"
        known = {"names_ignore_case": False if site == 2 else None}
        return own_row(settings(name), node(), {"state": "running", "reason": "", "applied": 1190, **known}), 0.1

    replica = {"state": "running", "reason": "", "applied": 1190, "names_ignore_case": case}
    _, oslo, lima = cluster_status(settings(), node(), replica, heard)["sites"]
    assert ("differ in lower_case_table_names" in oslo["reason"]) == case
    assert lima["reason"] == "", "not known yet"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"state": "retrying", "reason": "the server is gone"}, "retrying: the server is gone"),
        ({"lag_seconds": 5.1}, "applying what other sites did 5.1 s ago"),
        ({"lag_seconds": None, "applied": None}, "applying what other sites did - s ago"),
    ],
)
def test_readiness(changes: dict[str, Any], reason: str) -> None:
    assert unready(status(**changes)) == reason


def test_no_leader_is_not_ready() -> None:
    assert unready(cluster_status(settings(), node(leader=0), replica(), lambda site: None)) == "no leader is known"


def test_metrics_are_prometheus_text() -> None:
    text = metrics(status())
    print(text)
    sample = re.compile(r'mysqlraft_[a-z_]+(\{([a-z]+="[^"\n]*",?)*\})? -?[0-9.e+-]+')
    names = set()
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            assert line.split()[2] not in names, "a family comes once"
            names.add(line.split()[2])
        elif not line.startswith("# HELP"):
            assert sample.fullmatch(line), line
    assert 'mysqlraft_state{state="running"} 1' in text
    assert "mysqlraft_lag_entries 2\n" in text
    assert 'mysqlraft_peer_round_trip_seconds{peer="oslo"} 0.0015' in text
    assert 'mysqlraft_info{site="tokyo",version="' in text
    assert 'mysqlraft_raft_role_changes_total{role="leader"} 1\n' in text
    assert "mysqlraft_raft_elections_total 1\n" in text
    assert 'mysqlraft_raft_append_seconds_bucket{le="0.001"} 0\n' in text
    assert 'mysqlraft_raft_append_seconds_bucket{le="0.0025"} 1\n' in text
    assert 'mysqlraft_raft_append_seconds_bucket{le="+Inf"} 1\n' in text
    assert "mysqlraft_raft_append_seconds_count 1\n" in text
    assert "mysqlraft_raft_log_entries 1205\n" in text
    assert 'mysqlraft_peer_match_index{peer="oslo"} 1190\n' in text
    assert 'mysqlraft_peer_inflight_bytes{peer="lima"} 4096\n' in text


def test_every_metric_is_in_the_documentation() -> None:
    document = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    facts = node(configuration_index=11, receiving={"index": 9, "bytes": 500, "received": 20, "refused": 0})
    facts["peers"][2]["snapshot"] = {"index": 1000, "bytes": 300, "sent": 100}
    text = metrics(cluster_status(settings(), facts, replica(), lambda site: None))
    told = re.findall(r"^# TYPE (mysqlraft_\S+) (\S+)$", text, re.M)
    listed = re.findall(r"^\| `(mysqlraft_[a-z_]+)`[^|]*\| (gauge|counter|histogram) \|", document, re.M)
    assert sorted(listed) == sorted(told)


def test_metrics_tell_where_the_log_begins_and_how_far_snapshots_are() -> None:
    facts = node(first_index=1001, last_index=1200, receiving={"index": 9, "bytes": 500, "received": 20, "refused": 0})
    facts["peers"][2]["snapshot"] = {"index": 1000, "bytes": 300, "sent": 100}
    text = metrics(cluster_status(settings(), facts, replica(), lambda site: None))
    for line in (
        "mysqlraft_log_first_index 1001",
        "mysqlraft_log_last_index 1200",
        "mysqlraft_snapshot_receiving_received 20",
        "mysqlraft_snapshot_receiving_bytes 500",
        'mysqlraft_peer_snapshot_sent{peer="oslo"} 100',
        'mysqlraft_peer_snapshot_bytes{peer="oslo"} 300',
    ):
        assert f"{line}\n" in text


def test_metrics_leave_out_what_is_not_known() -> None:
    unknown = {"state": "starting", "reason": "the replica process is starting", "restarts": 0, "pid": None}
    text = metrics(cluster_status(settings(), node(), unknown, lambda site: None))
    assert "applied_index" not in text
    assert "None" not in text
    assert 'mysqlraft_state{state="starting"} 1' in text


def members(**changes: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """What a node tells of the members that the file has, with some changes by name."""
    found = {}
    for site in settings().cluster.sites:
        found[site.id] = {
            "name": site.name,
            "address": str(site.address),
            "voter": site.voter,
            "witness": site.witness,
            "priority": site.priority,
            **changes.get(site.name, {}),
        }
    return found


def of_node(**changes: Any) -> dict[str, Any]:
    """A status in which only the node's part matters."""
    return cluster_status(settings(), node(**changes), replica(), lambda site: None)


def test_the_members_are_those_of_the_log() -> None:
    written = members(oslo={"voter": False, "priority": 7}, lima={"witness": True, "voter": True})
    written[4] = {"name": "osaka", "address": "h:1", "voter": False, "witness": False, "priority": 0}
    del written[2]["witness"], written[3]["priority"]
    written[2]["witness"], written[3]["priority"] = False, 0
    found = of_node(members=written, configuration_index=17, transfer=2)
    assert [(row["name"], row["voter"], row["witness"], row["priority"]) for row in found["sites"]] == [
        ("tokyo", True, False, 0),
        ("oslo", False, False, 7),
        ("lima", True, True, 0),
        ("osaka", False, False, 0),
    ]
    assert (found["configuration_index"], found["transfer"]) == (17, "oslo")
    text = "\n".join(lines(found))
    print(text)
    assert "leadership is being handed over to oslo" in text
    assert "- (nonvoter, priority 7)" in text
    assert "- (witness)" in text
    (note,) = found["notes"]
    assert f"note: {note}" in text
    assert note == (
        "cluster.sites in the file is not what the log holds, which counts: oslo has voter true there, false in the "
        "log; oslo has priority 0 there, 7 in the log; lima has voter false there, true in the log; lima has witness "
        "false there, true in the log; osaka is a member"
    )


def test_sites_that_broke_the_protocol_are_named() -> None:
    parsed = config.parse(TEXT.format(site="tokyo", more=""), Path("test.yaml"))
    reported = replica() | {"void": [[12, 2, "part 7 of a unit, not 0"]]}
    found = cluster_status(parsed, node(members=members()), reported, lambda site: None)
    name = members()[2]["name"]
    (note,) = found["notes"]
    assert note == f"log index 12: {name} broke the protocol, and its session is void: part 7 of a unit, not 0"


def test_a_file_that_is_true_needs_no_note() -> None:
    assert of_node(members=members())["notes"] == []
    joining = TEXT.replace("voter: false", "join: true").format(site="tokyo", more="")
    parsed = config.parse(joining, Path("test.yaml"))
    without = {site: member for site, member in members().items() if site != 3}
    for there in (without, members()):  # before it is added, as a nonvoter at first, and after
        assert cluster_status(parsed, node(members=there), replica(), lambda site: None)["notes"] == []


@pytest.mark.parametrize("state", ["joining", "removed"])
def test_a_site_that_is_no_member_says_so(state: str) -> None:
    others = {site: member for site, member in members().items() if site != 1}
    found = of_node(members=others, membership=state, membership_reason="not a member")
    own_one = found["sites"][0]
    assert (own_one["name"], own_one["state"], own_one["reason"]) == ("tokyo", state, "not a member")
    assert unready(found) == f"{state}: not a member"
    assert f'mysqlraft_state{{state="{state}"}} 1' in metrics(found)


def test_a_witness_is_ready_without_a_server() -> None:
    status_of = {"state": "running", "reason": "", "server": None}
    witness = node(members=members(tokyo={"witness": True}))
    found = cluster_status(settings(), witness, status_of, lambda site: None)
    assert unready(found) == ""
    text = metrics(found)
    assert "None" not in text
    assert "applied_index" not in text
    assert unready(cluster_status(settings(), {**witness, "leader": 0}, status_of, lambda site: None))
