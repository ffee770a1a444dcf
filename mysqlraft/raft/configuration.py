"""Who is in the cluster: the replicated configuration, and the single-member changes it can go through.

A configuration travels in the log as an entry's payload and takes effect when it is *appended*, not when it is
committed (Ongaro's thesis, 4.1). Only one member changes at a time, so that any majority of the old configuration
and any majority of the new one share a voter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import NamedTuple

import msgpack

from mysqlraft.names import ADDRESS, ADDRESS_RULE, NAME, NAME_RULE, PORTS

SITE_IDS = range(1, 16)
PRIORITIES = range(101)
NOBODY = 0
"""No site's id."""


class ConfigurationError(ValueError):
    """A configuration, or a change of one, that is not allowed; the text says why."""


class Server(NamedTuple):
    """One member."""

    site: int
    """Its id, 1 to 15, never reused for another machine while the old one may come back."""
    name: str
    address: str
    """Where its peers reach it, "host:port"."""
    voter: bool = True
    """Voters elect and are counted for commitment; nonvoters only receive the log."""
    witness: bool = False
    """It has no database server: it stores the log and votes, and leads only while no other voter can."""
    priority: int = 0
    """Among voters that could lead as well, the one with the greatest does, after a while."""

    @property
    def rank(self) -> tuple[bool, int]:
        """Who rather leads: the greater."""
        return (not self.witness, self.priority)

    @property
    def kind(self) -> str:
        """What people call it: voter, nonvoter, witness, nonvoting witness."""
        if self.witness:
            return "witness" if self.voter else "nonvoting witness"
        return "voter" if self.voter else "nonvoter"

    def shown(self) -> dict[str, str | bool | int]:
        """What is shown of it, beside its id."""
        return {
            "name": self.name,
            "address": self.address,
            "kind": self.kind,
            "voter": self.voter,
            "witness": self.witness,
            "priority": self.priority,
        }


class Change(Enum):
    """A change of one member. Its value is its name in the admin API."""

    ADD_NONVOTER = "add-nonvoter"
    PROMOTE = "promote"
    DEMOTE = "demote"
    REMOVE = "remove"
    READDRESS = "readdress"
    PRIORITIZE = "prioritize"


class Configuration:
    """An immutable set of servers.

    Invariants: site ids, names and addresses are unique and well formed; at least one voter is no witness.
    """

    __slots__ = ("_nonvoters", "_servers", "_voters")

    def __init__(self, servers: Iterable[Server]) -> None:
        ordered = sorted(servers)
        self._servers: Mapping[int, Server] = {server.site: server for server in ordered}
        self._voters = tuple(server.site for server in ordered if server.voter)
        self._nonvoters = tuple(server.site for server in ordered if not server.voter)
        for server in ordered:
            if server.site not in SITE_IDS:
                raise ConfigurationError(f"site id {server.site} is not in 1..15")
            if not NAME.fullmatch(server.name):
                raise ConfigurationError(f"site {server.site}: name {server.name!r:.80} is not {NAME_RULE}")
            address = ADDRESS.fullmatch(server.address)
            if address is None or int(address[3]) not in PORTS:
                raise ConfigurationError(f"site {server.site}: address {server.address!r:.80} is not {ADDRESS_RULE}")
            if server.priority not in PRIORITIES:
                raise ConfigurationError(f"site {server.site}: priority {server.priority} is not in 0..100")
        for what, values in (
            ("site id", [server.site for server in ordered]),
            ("name", [server.name for server in ordered]),
            ("address", [server.address for server in ordered]),
        ):
            if len(set(values)) != len(values):
                raise ConfigurationError(f"two servers have the same {what}: {values}")
        if not any(server.voter and not server.witness for server in ordered):
            raise ConfigurationError("a configuration needs at least one voter that is no witness")

    @property
    def servers(self) -> Mapping[int, Server]:
        """Every member by its site id, in order of the ids."""
        return self._servers

    @property
    def voters(self) -> tuple[int, ...]:
        return self._voters

    @property
    def nonvoters(self) -> tuple[int, ...]:
        return self._nonvoters

    def __contains__(self, site: object) -> bool:
        return site in self._servers

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Configuration) and self._servers == other._servers

    def __hash__(self) -> int:
        return hash(tuple(self._servers.values()))

    def __repr__(self) -> str:
        return f"Configuration({self})"

    def __str__(self) -> str:
        return ", ".join(
            f"{server.site}={server.name}@{server.address}{_remarks(server)}" for server in self._servers.values()
        )

    def encode(self) -> bytes:
        packed: bytes = msgpack.packb([tuple(server) for server in self._servers.values()])
        return packed

    @classmethod
    def decode(cls, payload: bytes) -> Configuration:
        try:
            return cls(_server(*fields) for fields in msgpack.unpackb(payload))
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise ConfigurationError(f"not an encoded configuration: {error}") from error

    def changed(self, change: Change, server: Server) -> Configuration:
        """This configuration after one change. Of `server` only what the change needs is looked at."""
        servers = dict(self._servers)
        present = servers.get(server.site)
        if change is Change.ADD_NONVOTER:
            if present is not None:
                raise ConfigurationError(f"site {server.site} is already a member")
            servers[server.site] = server._replace(voter=False)
            return Configuration(servers.values())
        if present is None:
            raise ConfigurationError(f"site {server.site} is not a member")
        if change is Change.REMOVE:
            del servers[server.site]
        else:
            servers[server.site] = changed = _CHANGES[change](present, server)
            if changed == present:
                raise ConfigurationError(
                    f"{change.value} of site {server.site} changes nothing: it is a {present.kind} at "
                    f"{present.address} with priority {present.priority} already"
                )
        if not any(each.voter and not each.witness for each in servers.values()):
            raise ConfigurationError(f"{change.value} of site {server.site} would leave no voter that is no witness")
        return Configuration(servers.values())


_CHANGES: Mapping[Change, Callable[[Server, Server], Server]] = {
    Change.PROMOTE: lambda present, _: present._replace(voter=True),
    Change.DEMOTE: lambda present, _: present._replace(voter=False),
    Change.READDRESS: lambda present, wanted: present._replace(address=wanted.address),
    Change.PRIORITIZE: lambda present, wanted: present._replace(priority=wanted.priority),
}


def _server(site: int, name: str, address: str, voter: bool, witness: bool = False, priority: int = 0) -> Server:
    """Of what was decoded; the first version had neither witnesses nor priorities."""
    return Server(int(site), str(name), str(address), bool(voter), bool(witness), int(priority))


def _remarks(server: Server) -> str:
    remarks = [] if server.kind == "voter" else [server.kind]
    if server.priority:
        remarks.append(f"priority {server.priority}")
    return f" ({', '.join(remarks)})" if remarks else ""
