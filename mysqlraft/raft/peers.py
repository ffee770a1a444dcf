"""Whom this site has connections with, and what it is to them: by its own log, and by what others say.

Its own log comes first. But a site that was away, or is new, has an old one: whoever introduces itself by a newer
configuration is believed to be a member, and whoever refuses this site by one that this site is not in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from enum import StrEnum

from mysqlraft.raft.configuration import NOBODY, Configuration
from mysqlraft.raft.core import RaftCore
from mysqlraft.raft.handshake import Introduction

FAREWELL_SECONDS = 2.0
"""How long a removed site's connections are kept: an answer may be on its way, as to who asked for the removal."""


class Membership(StrEnum):
    """What this site is to the cluster, as far as it knows."""

    MEMBER = "member"
    JOINING = "joining"
    """It has never been one, and waits to be added."""
    REMOVED = "removed"


class Peers:
    """What handshake.Acquaintances asks, and the addresses that the transport is to keep connections to."""

    def __init__(
        self,
        core: RaftCore,
        addresses: Mapping[int, str],
        names: Mapping[int, str],
        set_peers: Callable[[Mapping[int, str]], None],
    ) -> None:
        """`addresses` are used instead of those in the configuration, `names` where the configuration has none.
        `set_peers` gets the address of each peer whenever they have changed."""
        self._core = core
        self._addresses = dict(addresses)
        self._names = dict(names)
        self._connect = set_peers
        self._introduced: dict[int, Introduction] = {}
        """Of members by configurations that are newer than ours."""
        self._stranger: tuple[int, int] = (0, NOBODY)
        """The greatest index of a committed configuration in which this site is said to be missing, and who said so."""
        self._peers: dict[int, str] = {}
        self._leaving: dict[int, asyncio.TimerHandle] = {}
        """Of the peers those who are no members any more, but were a moment ago; when they are let go."""
        self._from: tuple[Configuration | None, bool] | None = None
        self._stopped = False

    def refresh(self) -> None:
        """Set the peers anew if what they depend on has changed: the latest configuration, and whether those before it
        still count."""
        core = self._core
        known = core.configuration, core.configuration_index > core.commit_index
        if known != self._from:
            self._from = known
            self._update()

    def stop(self) -> None:
        """The peers stay as they are."""
        self._stopped = True
        for leaving in self._leaving.values():
            leaving.cancel()

    def _update(self) -> None:
        if self._stopped:
            return
        core = self._core
        newer = [site for site, said in self._introduced.items() if said.index > core.configuration_index]
        self._introduced = {site: self._introduced[site] for site in newer}
        addresses = {site: said.address for site, said in self._introduced.items()}
        addresses = {site: server.address for site, server in core.members.acquaintances.items()} | addresses
        members = {site: self._addresses.get(site, at) for site, at in addresses.items()}
        for site in self._peers.keys() - members.keys() - self._leaving.keys():
            loop = asyncio.get_running_loop()
            self._leaving[site] = loop.call_later(FAREWELL_SECONDS, self._farewell, site)
        for site in self._leaving.keys() & members.keys():
            self._leaving.pop(site).cancel()
        self._peers = members | {site: self._peers[site] for site in self._leaving}
        self._connect(self._peers)

    def _farewell(self, site: int) -> None:
        del self._leaving[site]
        del self._peers[site]
        self._update()

    @property
    def membership(self) -> tuple[Membership, str]:
        """Whether this site is a member, and the reason if it is not. A site that hears a leader is one, however old
        the configuration in its log is."""
        core = self._core
        if core.leader != NOBODY:
            return Membership.MEMBER, ""
        index, teller = self._stranger
        by = f"site {teller} knows"
        if index <= core.configuration_index:
            if core.configuration is None:
                return Membership.JOINING, "not a member yet: `mysqlraft members add` at a member"
            index, by = core.configuration_index, "its own log holds"
            if core.site in core.configuration or index > core.commit_index:
                return Membership.MEMBER, ""
        if any(core.site in configuration for _, configuration in core.log.configurations):
            return Membership.REMOVED, f"not a member any more, by the configuration at index {index} that {by}"
        return Membership.JOINING, (
            f"not a member yet, by the configuration at index {index} that {by}: `mysqlraft members add` at a member"
        )

    # ---- for handshakes -------------------------------------------------------------------------------------------

    def introduction(self) -> Introduction:
        core = self._core
        if core.configuration is None or core.site not in core.configuration:
            return Introduction(0, "", "")
        own = core.configuration.servers[core.site]
        return Introduction(core.members.introduction, own.name, own.address)

    def knows(self, site: int, introduction: Introduction) -> bool:
        return self._core.members.knows(site, introduction.index)

    def name_of(self, site: int) -> str | None:
        server = self._core.members.acquaintances.get(site)
        if server is None and site in self._introduced:
            return self._introduced[site].name
        return self._names.get(site) if server is None else server.name

    def stranger_as_of(self, site: int) -> int:
        committed = self._core.configuration_index <= self._core.commit_index
        return self._core.configuration_index if committed else 0

    def introduced(self, site: int, introduction: Introduction) -> None:
        if introduction.index > self._core.configuration_index and introduction != self._introduced.get(site):
            self._introduced[site] = introduction
            self._update()

    def called_stranger(self, by: int, index: int) -> None:
        self._stranger = max(self._stranger, (index, by))
