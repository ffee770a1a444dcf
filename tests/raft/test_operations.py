"""Changing the members and the leader of running clusters: real sockets, real LevelDBs, asked at any site."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mysqlraft.raft import Configuration, LevelDBStore, Limits, Node, Role, Server
from mysqlraft.raft.bootstrap import bootstrap
from mysqlraft.raft.operations import NotDone, Operations, Outcome, Request
from mysqlraft.raft.peers import Membership
from tests.raft.ports import free_ports
from tests.raft.test_node import TICK, delivered, run, until

LIMITS = Limits(election_ticks=20, preference_ticks=20)
SECONDS = 10.0


class Sites:
    """Founders, and others that may join."""

    def __init__(self, founders: Configuration, directory: Path, joiners: int = 0) -> None:
        self.founders = founders
        self.directory = directory
        self.addresses = {site: server.address for site, server in founders.servers.items()}
        for port in free_ports(joiners):
            self.addresses[len(self.addresses) + 1] = f"127.0.0.1:{port}"
        self.dial: dict[int, str] = {}
        self.seconds = SECONDS
        self.nodes: dict[int, Node] = {}
        self.operations: dict[int, Operations] = {}
        self._stores: dict[int, LevelDBStore] = {}

    async def start(self, site: int) -> Node:
        store = LevelDBStore(self.directory / str(site), "test", site)
        if site in self.founders.servers and not store.last_index:
            bootstrap(store, self.founders)
        node = Node(
            site,
            "test",
            store,
            self.addresses[site],
            addresses=self.dial,
            tick_seconds=TICK,
            random=Random(site),
            limits=LIMITS,
        )
        self.operations[site] = Operations(node)
        await node.start()
        self.nodes[site], self._stores[site] = node, store
        return node

    async def stop(self, site: int) -> None:
        await self.nodes.pop(site).stop()
        self.operations.pop(site)
        self._stores.pop(site).close()

    async def led(self, by: int = 0) -> Node:
        """Everybody that runs and is a member follows one leader (this one)."""

        def leader() -> Node | None:
            members = [node for node in self.nodes.values() if node.membership[0] is Membership.MEMBER]
            leaders = {node.leader for node in members}
            if len(leaders) != 1 or 0 in leaders or (by and leaders != {by}):
                return None
            found = self.nodes.get(leaders.pop())
            return found if found is not None and found.role is Role.LEADER else None

        await until(lambda: leader() is not None)
        found = leader()
        assert found is not None
        return found

    async def perform(self, at: int, verb: str, **wish: Any) -> dict[str, Any]:
        return await self.operations[at].perform(Request.parse(verb, wish), self.seconds)

    async def everywhere(self, configuration: Configuration) -> None:
        members = [node for site, node in self.nodes.items() if site in configuration]
        await until(lambda: all(node.configuration == configuration for node in members))


def founders(count: int, **priorities: int) -> Configuration:
    ports = free_ports(count)
    return Configuration(
        Server(site, f"s{site}", f"127.0.0.1:{ports[site - 1]}", priority=priorities.get(f"s{site}", 0))
        for site in range(1, count + 1)
    )


@asynccontextmanager
async def sites(configuration: Configuration, directory: Path, joiners: int = 0) -> AsyncIterator[Sites]:
    made = Sites(configuration, directory, joiners)
    try:
        for site in configuration.servers:
            await made.start(site)
        yield made
    finally:
        for site in list(made.nodes):
            await made.stop(site)


async def refused(work: Coroutine[Any, Any, Any], outcome: Outcome = Outcome.REFUSED) -> str:
    with pytest.raises(NotDone) as caught:
        await work
    assert caught.value.outcome is outcome
    return str(caught.value)


def test_a_site_joins_is_promoted_demoted_and_removed_asked_at_a_follower(tmp_path: Path) -> None:
    async def work() -> None:
        async with sites(founders(3), tmp_path, joiners=1) as made:
            leader = await made.led()
            follower = next(site for site in made.nodes if site != leader.site)
            for sequence in range(1, 101):
                leader.propose(1, sequence, b"%d" % sequence)
            joiner = await made.start(4)
            assert joiner.membership[0] is Membership.JOINING
            assert "`mysqlraft members add`" in joiner.membership[1]
            assert "this site is not a member yet" in await refused(made.perform(4, "transfer"))

            wish = {"site": 4, "name": "s4", "address": made.addresses[4]}
            done = await made.perform(follower, "add-nonvoter", **wish)
            assert done["leader"] == leader.site
            await until(lambda: joiner.commit_index >= done["configuration_index"])
            assert joiner.membership == (Membership.MEMBER, "")
            assert delivered(joiner) == delivered(leader)

            async def promote() -> dict[str, Any]:
                while True:  # it has the entries, and its leader hears of that a moment later
                    try:
                        return await made.perform(4, "promote", site="s4")
                    except NotDone as error:
                        if "has not caught up" not in str(error):
                            raise

            promoted = (await promote())["configuration_index"]
            stale = made.perform(follower, "demote", site=4, expected_index=promoted - 1)
            assert f"it is the one at index {promoted}, not {promoted - 1}" in await refused(stale)
            await made.perform(follower, "demote", site=4, expected_index=promoted)
            await made.perform(follower, "remove", site="s4")
            await until(lambda: joiner.membership[0] is Membership.REMOVED)
            print(joiner.membership[1])
            assert "is not a member; `mysqlraft members list`" in await refused(
                made.perform(follower, "remove", site=4)
            )
            joiner.propose(1, 1, b"after the removal")
            leader.propose(1, 101, b"101")
            await until(lambda: leader.outstanding_bytes == 0)
            assert 4 not in delivered(leader)

            # And back again, with what it has.
            await made.perform(follower, "add-nonvoter", **wish)
            await until(lambda: joiner.membership[0] is Membership.MEMBER and joiner.outstanding_bytes == 0)
            await until(lambda: delivered(leader).get(4) == [b"after the removal"])

    run(work())


def test_a_removed_site_learns_it_when_it_comes_back(tmp_path: Path) -> None:
    async def work() -> None:
        async with sites(founders(3), tmp_path) as made:
            leader = await made.led()
            gone, other = [site for site in made.nodes if site != leader.site]
            await made.stop(gone)
            await made.perform(other, "remove", site=gone)
            back = await made.start(gone)
            await until(lambda: back.membership[0] is Membership.REMOVED)
            assert back.membership[1].startswith("not a member any more, by the configuration at index ")
            assert (leader.role, leader.term) == (Role.LEADER, made.nodes[other].term)

    run(work())


def test_a_leader_that_is_removed_hands_over_first(tmp_path: Path) -> None:
    async def work() -> None:
        async with sites(founders(3), tmp_path) as made:
            leader = await made.led()
            done = await made.perform(leader.site, "remove", site=leader.site)
            assert done["leader"] != leader.site
            await until(lambda: leader.membership[0] is Membership.REMOVED)
            rest = await made.led()
            assert rest.configuration is not None
            assert leader.site not in rest.configuration
            first, last = rest.configuration.servers
            await made.perform(rest.site, "demote", site=first)
            assert "would leave no voter" in await refused(made.perform(rest.site, "demote", site=last))

    run(work())


def test_a_site_that_was_away_while_all_others_changed_finds_the_new_ones(tmp_path: Path) -> None:
    """Its own configuration knows neither the leader nor where it is."""

    async def work() -> None:
        async with sites(founders(3), tmp_path, joiners=2) as made:
            leader = await made.led()
            await made.perform(leader.site, "transfer", site=1) if leader.site != 1 else None
            await made.led(by=1)
            await made.stop(3)
            for site in (4, 5):
                await made.start(site)
                await made.perform(2, "add-nonvoter", site=site, name=f"s{site}", address=made.addresses[site])
                await made.perform(2, "promote", site=site, force=True)
            for site in (1, 2):
                await made.perform(4, "remove", site=site)
                await made.stop(site)
            assert (await made.led()).site in (4, 5)
            await made.start(3)
            made.nodes[4].propose(1, 1, b"x")
            await until(lambda: delivered(made.nodes[3]) == {4: [b"x"]})

    run(work())


def test_an_address_is_changed_while_the_site_is_away(tmp_path: Path) -> None:
    async def work() -> None:
        async with sites(founders(3), tmp_path) as made:
            leader = await made.led()
            moved, other = [site for site in made.nodes if site != leader.site]
            await made.stop(moved)
            made.addresses[moved] = f"127.0.0.1:{free_ports(1)[0]}"
            await made.perform(other, "readdress", site=moved, address=made.addresses[moved])
            node = await made.start(moved)
            await until(lambda: node.configuration == leader.configuration)
            await until(lambda: leader.transport.connected(moved))
            taken = made.perform(other, "readdress", site=moved, address=made.addresses[other])
            assert "same address" in await refused(taken)

    run(work())


def test_a_wrong_address_of_a_site_that_the_majority_needs_is_mended_by_dial(tmp_path: Path) -> None:
    """The procedure of docs/operations.md."""

    async def work() -> None:
        async with sites(founders(2), tmp_path) as made:
            leader = (await made.led()).site
            away = 3 - leader
            right = made.addresses[away]
            made.seconds = 1.0
            wrong = made.perform(leader, "readdress", site=away, address=f"127.0.0.1:{free_ports(1)[0]}")
            assert "if the address is wrong" in await refused(wrong, Outcome.UNKNOWN)
            await made.stop(leader)
            made.dial = {away: right}
            await made.start(leader)
            made.seconds = 20.0
            await made.led()
            await made.perform(away, "readdress", site=away, address=right)
            configuration = made.nodes[leader].configuration
            assert configuration is not None
            assert configuration.servers[away].address == right

    run(work())


def test_transfer_from_anywhere_to_a_site_and_back(tmp_path: Path) -> None:
    async def work() -> None:
        async with sites(founders(3), tmp_path) as made:
            leader = await made.led()
            first, second = [site for site in made.nodes if site != leader.site]
            assert await made.perform(first, "transfer", site=second) == {
                "leader": second,
                "name": f"s{second}",
                "moved": True,
            }
            await made.led(by=second)
            assert not (await made.perform(first, "transfer", site=f"s{second}"))["moved"]
            done = await made.perform(first, "transfer")
            assert done["moved"]
            assert done["leader"] != second
            assert "site nowhere is not a member" in await refused(made.perform(first, "transfer", site="nowhere"))

    run(work())


def test_a_transfer_to_a_site_that_is_down_fails_and_says_so(tmp_path: Path) -> None:
    async def work() -> None:
        async with sites(founders(3), tmp_path) as made:
            leader = await made.led()
            gone, other = [site for site in made.nodes if site != leader.site]
            await made.stop(gone)
            reason = await refused(made.perform(other, "transfer", site=gone))
            assert f"s{gone} " in reason
            assert "did not take over within an election timeout" in reason
            leader.propose(1, 1, b"x")
            await until(lambda: leader.outstanding_bytes == 0)

    run(work())


def test_a_preferred_site_takes_over_after_a_while(tmp_path: Path) -> None:
    async def work() -> None:
        async with sites(founders(3, s2=5), tmp_path) as made:
            await made.led(by=2)
            await made.perform(1, "prioritize", site="s3", priority=9)
            await made.led(by=3)
            assert made.nodes[1].status()["members"][3]["priority"] == 9

    run(work())


def test_without_a_majority_nothing_is_done_and_the_reason_is_told(tmp_path: Path) -> None:
    async def work() -> None:
        async with sites(founders(3), tmp_path) as made:
            leader = await made.led()
            alone, other = [site for site in made.nodes if site != leader.site]
            await asyncio.gather(made.stop(leader.site), made.stop(other))
            await until(lambda: made.nodes[alone].leader == 0)
            made.seconds = 0.3
            assert "no leader is known here" in await refused(made.perform(alone, "transfer"), Outcome.NO_LEADER)

    run(work())


def test_a_change_that_does_not_commit_in_time_says_that_it_may_yet(tmp_path: Path) -> None:
    async def work() -> None:
        async with sites(founders(2), tmp_path, joiners=1) as made:
            leader = await made.led()
            await until(lambda: leader.commit_index == leader.last_index)
            await made.stop(3 - leader.site)
            made.seconds = 0.05
            wish = {"site": 3, "name": "s3", "address": made.addresses[3]}
            reason = await refused(made.perform(leader.site, "add-nonvoter", **wish), Outcome.UNKNOWN)
            assert "has not committed in time" in reason

    run(work())


@pytest.mark.parametrize(
    ("verb", "wish", "reason"),
    [
        ("explode", {}, "'explode' is not a change: one of add-nonvoter, promote"),
        (None, {}, "None is not a change"),
        ("promote", {}, "site: is missing"),
        ("promote", {"site": True}, "site: True is not allowed"),
        ("promote", {"site": -1}, "site: -1 is not allowed"),
        ("promote", {"site": 1, "force": 1}, "force: 1 is not allowed"),
        ("promote", {"site": 1, "colour": 1}, "colour: 1 is not allowed"),
        ("add-nonvoter", {"site": "x", "name": "x", "address": "h:1"}, "takes its id"),
        ("readdress", {"site": 1}, "address: is missing"),
    ],
)
def test_what_is_no_request(verb: object, wish: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotDone, match=reason) as caught:
        Request.parse(verb, wish)
    assert caught.value.outcome is Outcome.INVALID


def test_questions_and_answers_between_sites(tmp_path: Path) -> None:
    async def work() -> None:
        async with sites(founders(2), tmp_path) as made:
            await made.led()
            asked = made.nodes[2].calls
            for garbage in (b"", b"\xc1", b"\x93\x01\x02\x03"):
                answer = await made.nodes[1].calls.ask(2, garbage, SECONDS)
                assert b"not a request" in answer or b"is not a change" in answer
            # An answer to nothing that was asked, or of another site, changes nothing.
            asked.received(1, False, 12345, b"x")

    run(work())
