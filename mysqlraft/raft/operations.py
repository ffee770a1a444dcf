"""What only the leader can do to the cluster, asked for at any site: changes of members, and handing over leadership.

A request is done where it is asked for if that site leads; else it travels to the leader (calls.py), and the answer
comes back. Whoever asks waits for the outcome: a change until its configuration has committed, a transfer until
somebody leads. A request that the leader has certainly not begun goes to the next leader by itself, until its time is
over. One that may have been begun is not repeated; the error says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import msgpack

from mysqlraft.raft.calls import NoAnswer
from mysqlraft.raft.configuration import NOBODY, Change, Configuration, ConfigurationError, Server
from mysqlraft.raft.members import NotYet
from mysqlraft.raft.node import Node
from mysqlraft.raft.peers import Membership
from mysqlraft.raft.roles import NotLeader, Role

TRANSFER = "transfer"
MAX_SECONDS = 600.0
_PAUSE = 0.05


class Outcome(StrEnum):
    """Why a request was not done."""

    INVALID = "invalid"
    """It is none."""
    REFUSED = "refused"
    """By the rules, or because the cluster is not as whoever asked thought."""
    NO_LEADER = "no leader"
    """Nothing was done; it may work later."""
    UNKNOWN = "unknown"
    """It may have been done, or be done later."""


class NotDone(Exception):
    """The text says why, and what to do."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


class Request(NamedTuple):
    """A wish, as it travels."""

    verb: str
    """TRANSFER, or a `Change`."""
    site: int | str = NOBODY
    """An id or a name; for a transfer, nobody in particular if NOBODY."""
    name: str = ""
    address: str = ""
    witness: bool = False
    priority: int = 0
    expected_index: int = 0
    """The index of the configuration that the wish is about; 0: whatever it is."""
    force: bool = False

    @classmethod
    def parse(cls, verb: object, wish: Mapping[str, Any]) -> Request:
        """Raises NotDone for what is no request."""
        for key, value in wish.items():
            default = cls._field_defaults.get(key)
            wanted = (int, str) if key == "site" else (type(default),)
            if default is None or type(value) not in wanted or not _sane(value):
                raise NotDone(Outcome.INVALID, f"{key}: {value!r:.40} is not allowed here")
        request = cls(TRANSFER if verb == TRANSFER else change_named(verb).value, **wish)
        if verb == Change.ADD_NONVOTER.value and not (type(request.site) is int and request.name and request.address):
            raise NotDone(Outcome.INVALID, "to add a site takes its id (site), its name and its address")
        if verb == Change.READDRESS.value and not request.address:
            raise NotDone(Outcome.INVALID, "address: is missing")
        if verb != TRANSFER and not request.site:
            raise NotDone(Outcome.INVALID, "site: is missing: which one, by name or id")
        return request


def _sane(value: Any) -> bool:
    """Whether it can travel."""
    if type(value) is int:
        return 0 <= value < 1 << 63
    return type(value) is not str or value.isprintable()


def change_named(value: object) -> Change:
    """Raises NotDone if there is none of this name."""
    try:
        return Change(value)
    except ValueError:
        known = ", ".join(change.value for change in Change)
        raise NotDone(Outcome.INVALID, f"{value!r:.40} is not a change: one of {known}") from None


class Operations:
    """One site's end of it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        node.calls.answer = self._answer

    async def perform(self, request: Request, seconds: float) -> dict[str, Any]:
        """Have it done within so many seconds; what came of it. Raises NotDone."""
        deadline = time.monotonic() + min(seconds, MAX_SECONDS)
        waiting_for = "no leader is known here: does a majority of the voters run, and reach each other?"
        while True:
            membership, reason = self._node.membership
            if membership is not Membership.MEMBER:
                raise NotDone(Outcome.REFUSED, f"this site is {reason}; ask at a member")
            leader = self._node.leader
            try:
                if leader == self._node.site:
                    return await self._lead(request, deadline)
                if leader != NOBODY:
                    return await self._pass_on(leader, request, deadline)
            except NotLeader:
                pass  # it has just lost its leadership, or is about to
            except NotYet as error:
                waiting_for = str(error)
            except NoAnswer as error:
                if error.sent:
                    raise NotDone(
                        Outcome.UNKNOWN,
                        f"the leader, {self._named(leader)}, was asked and gave no answer ({error}): whether it was "
                        "done is not known; `mysqlraft members list` and `mysqlraft status` show it",
                    ) from None
                waiting_for = f"the leader, {self._named(leader)}, cannot be asked from here: {error}; ask there"
            if time.monotonic() + _PAUSE >= deadline:
                raise NotDone(Outcome.NO_LEADER, f"nothing was done within {seconds:g} s: {waiting_for}")
            await asyncio.sleep(_PAUSE)

    # ---- between sites --------------------------------------------------------------------------------------------

    async def _pass_on(self, leader: int, request: Request, deadline: float) -> dict[str, Any]:
        """What the leader answers. Raises NotLeader, NotYet if it may be asked again, NoAnswer and NotDone."""
        seconds = max(_PAUSE, deadline - time.monotonic())
        packed: bytes = msgpack.packb([request.verb, request._asdict(), seconds])
        # The leader ends first: so its own account of a failure arrives.
        status, answer = msgpack.unpackb(await self._node.calls.ask(leader, packed, seconds + 1.0))
        if status == "done":
            done: dict[str, Any] = answer
            return done
        if status == "not the leader":
            raise NotLeader
        if status == "not yet":
            raise NotYet(answer)
        raise NotDone(Outcome(status), answer)

    async def _answer(self, asker: int, question: bytes) -> bytes:
        """As the leader, to another site."""
        try:
            verb, wish, seconds = msgpack.unpackb(question)
            wish.pop("verb")
            request = Request.parse(verb, wish)
            answer = ("done", await self._lead(request, time.monotonic() + min(seconds, MAX_SECONDS)))
        except NotLeader:
            answer = ("not the leader", {})
        except NotYet as error:
            answer = ("not yet", str(error))  # type: ignore[assignment]
        except NotDone as error:
            answer = (error.outcome.value, str(error))  # type: ignore[assignment]
        except (ValueError, TypeError, AttributeError, KeyError, msgpack.UnpackException) as error:
            answer = (Outcome.INVALID.value, f"not a request: {error}")  # type: ignore[assignment]
        packed: bytes = msgpack.packb(answer)
        return packed

    # ---- at the leader --------------------------------------------------------------------------------------------

    async def _lead(self, request: Request, deadline: float) -> dict[str, Any]:
        """Raises NotLeader and NotYet if nothing was done and it may be asked for again; else NotDone."""
        try:
            if request.verb == TRANSFER:
                return await self._transfer(request, deadline)
            return await self._change(Change(request.verb), request, deadline)
        except NotYet:
            raise
        except ConfigurationError as error:
            hint = "; `mysqlraft members list` shows who is" if "is not a member" in str(error) else ""
            raise NotDone(Outcome.REFUSED, f"{error}{hint}") from None

    async def _change(self, change: Change, request: Request, deadline: float) -> dict[str, Any]:
        node = self._node
        configuration = self._configuration()
        server = _server(configuration, change, request)
        if server.site == node.site and change in (Change.REMOVE, Change.DEMOTE):
            # Else it would have to lead without being a member, and the others would have to find a leader by
            # themselves. Whoever leads next is asked again.
            configuration.changed(change, server)
            await self._hand_over(NOBODY, deadline)
            raise NotLeader
        expected = request.expected_index or node.configuration_index
        index = node.propose_change(change, server, expected, request.force)
        term = node.term
        what = f"{change.value} of site {server.site} is at index {index} of the log"
        try:
            async with asyncio.timeout(max(_PAUSE, deadline - time.monotonic())):
                await node.wait_committed(index)
        except TimeoutError:
            reason = f"{what} and has not committed in time: it will when a majority of the voters has it"
            if change is Change.READDRESS:
                reason += "; if the address is wrong, and the majority needs that site: docs/operations.md, Members"
            raise NotDone(Outcome.UNKNOWN, reason) from None
        if node.term_at(index) != term:
            raise NotDone(Outcome.REFUSED, f"{what}, but another leader has replaced it: ask again")
        return {"configuration_index": index, "leader": node.site}

    async def _transfer(self, request: Request, deadline: float) -> dict[str, Any]:
        target = NOBODY if request.site == NOBODY else _find(self._configuration(), request.site)
        if target == self._node.site:
            return {"leader": target, "name": self._name(target), "moved": False}
        await self._hand_over(target, deadline)
        return {"leader": self._node.leader, "name": self._name(self._node.leader), "moved": True}

    async def _hand_over(self, target: int, deadline: float) -> None:
        """Returns when another site leads. Raises NotLeader, ConfigurationError, NotDone."""
        node = self._node
        chosen = node.transfer(target)
        try:
            async with asyncio.timeout(max(_PAUSE, deadline - time.monotonic())):
                while node.role is Role.LEADER and node.transferee == chosen:
                    await node.next_transition()
                if node.role is Role.LEADER:
                    raise NotDone(
                        Outcome.REFUSED,
                        f"{self._named(chosen)} did not take over within an election timeout ({node.lag(chosen)}): "
                        f"{self._named(node.site)} goes on leading",
                    )
                while node.leader == NOBODY:
                    await node.next_transition()
        except TimeoutError:
            raise NotDone(
                Outcome.UNKNOWN, f"leadership is being handed to {self._named(chosen)}, and nobody leads yet"
            ) from None
        if target not in (NOBODY, node.leader):
            raise NotDone(Outcome.REFUSED, f"{self._named(node.leader)} leads now, and not {self._named(target)}")

    # ---- names ----------------------------------------------------------------------------------------------------

    def _configuration(self) -> Configuration:
        configuration = self._node.configuration
        if configuration is None:
            raise NotLeader
        return configuration

    def _name(self, site: int) -> str:
        server = self._configuration().servers.get(site)
        return server.name if server is not None else f"site {site}"

    def _named(self, site: int) -> str:
        """A site's name and address, for people."""
        configuration = self._node.configuration
        server = configuration.servers.get(site) if configuration is not None else None
        return f"{server.name} ({server.address})" if server is not None else f"site {site}"


def _find(configuration: Configuration, site: int | str) -> int:
    found = next((each.site for each in configuration.servers.values() if site in (each.site, each.name)), NOBODY)
    if not found:
        raise ConfigurationError(f"site {site} is not a member")
    return found


def _server(configuration: Configuration, change: Change, request: Request) -> Server:
    """What `Configuration.changed` takes."""
    if change is Change.ADD_NONVOTER and type(request.site) is int:
        return Server(request.site, request.name, request.address, False, request.witness, request.priority)
    return Server(_find(configuration, request.site), "", request.address, priority=request.priority)
