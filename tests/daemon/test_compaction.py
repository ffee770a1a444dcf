"""The daemon lets go of the log's beginning only where raft.log_keep asks for it and every member has what it needs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from mysqlraft import config, daemon
from mysqlraft.daemon import Daemon
from mysqlraft.raft.peers import Membership

TEXT = """\
cluster:
  id: test
  sites:
    - {{id: 1, name: tokyo, address: "127.0.0.1:7450"}}
    - {{id: 2, name: oslo, address: "127.0.0.1:7460"}}
    - {{id: 3, name: lima, address: "127.0.0.1:7470"}}
site: tokyo
data_dir: data
insecure: true
mysql: {{user: root}}
raft: {{log_keep: {keep}}}
"""


def compacted(
    monkeypatch: pytest.MonkeyPatch,
    keep: int = 100,
    needed_from: int = 45_000,
    stored: dict[int, int] | None = None,
    membership: Membership = Membership.MEMBER,
) -> list[int]:
    """What the node was asked to compact up to, by a site that has committed 50,000 entries."""
    asked: list[int] = []
    rows = {site: msgpack.packb({"state": "running", "commit_index": index}) for site, index in (stored or {}).items()}
    node: Any = SimpleNamespace(
        status=lambda: {"members": {1: {}, 2: {}, 3: {}}},
        membership=(membership, ""),
        commit_index=50_000,
        first_index=1,
        compact=asked.append,
        transport=SimpleNamespace(status_of=lambda site: (rows[site], 0.1) if site in rows else None),
    )
    made = Daemon(config.parse(TEXT.format(keep=keep), Path("test.yaml")))
    made._node = node
    made._supervisor = SimpleNamespace(status={"needed_from": needed_from})  # type: ignore[assignment]
    monkeypatch.setattr(daemon, "COMPACT_SECONDS", 0)

    async def some_turns() -> None:
        compacting = asyncio.create_task(made._compact())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not compacting.done()
        compacting.cancel()

    asyncio.run(some_turns())
    return sorted(set(asked))


def test_what_no_member_needs_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compacted(monkeypatch, stored={2: 50_000, 3: 49_000}) == [44_899]
    assert compacted(monkeypatch, stored={2: 50_000, 3: 20_000}) == [19_900]


def test_the_whole_log_stays_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compacted(monkeypatch, keep=0, stored={2: 50_000, 3: 50_000}) == []


def test_a_member_that_was_not_heard_of_holds_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compacted(monkeypatch, stored={2: 50_000}) == []


def test_nothing_goes_before_replication_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compacted(monkeypatch, needed_from=0, stored={2: 50_000, 3: 50_000}) == []


def test_a_site_that_is_no_member_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for membership in set(Membership) - {Membership.MEMBER}:
        assert compacted(monkeypatch, stored={2: 50_000, 3: 50_000}, membership=membership) == []


def test_a_few_entries_are_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compacted(monkeypatch, needed_from=1_050, stored={2: 50_000, 3: 50_000}) == []
