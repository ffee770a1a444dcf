"""What two sites say to each other before anything else, and whom this one talks with.

The dialler's first frame is [0, "mysqlraft", protocol version, cluster, its site, the site it wants, channel, its
incarnation, and its introduction: configuration index, name, address]. The answer is [0], or [0, reason of the
refusal], or [0, reason, configuration index] if by that configuration its site is not a member, or [0, reason, 0,
seconds, address] if another daemon has been that site here for so long (identity.py).

With TLS (tls.py), that comes first. The dialler compares the site that it wants with the names in the certificate
before it says a word; the other end does the same with the site that the handshake claims.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from mysqlraft.raft import wire
from mysqlraft.raft.channel import Channel
from mysqlraft.raft.frames import HELLO
from mysqlraft.raft.identity import Identities, Rival
from mysqlraft.raft.tls import Tls, names, shown_names
from mysqlraft.raft.wire import ProtocolError

logger = logging.getLogger(__name__)

MAGIC = "mysqlraft"
HANDSHAKE_SECONDS = 5.0
"""For all of it; for that of TLS as well."""
REFUSAL_SECONDS = 60.0
"""How often the same refusal is logged."""
_HELLO_TYPES = [str, int, int, int, int, int, str, str]
"""Of what follows the protocol version."""


class Introduction(NamedTuple):
    """What a site says of itself when it dials another one: so a site that was away while the members changed, or
    that never was one, learns of members that its own configuration does not have."""

    index: int  # type: ignore[assignment]  # shadows tuple.index
    """Of the latest configuration in its log, in which it is a member; 0 if it is none."""
    name: str
    address: str
    """Its own in that configuration."""


class Refusal(NamedTuple):
    reason: str
    stranger_as_of: int = 0
    """The index of the configuration by which the refused site is not a member; 0 if that is not why, or not sure."""
    rival: Rival | None = None
    """Another daemon is the site."""

    @property
    def fields(self) -> tuple[object, ...]:
        """What the answer says of it."""
        if self.rival is not None and self.rival.proven:
            return (self.reason, 0, self.rival.seconds, self.rival.where)
        return (self.reason, self.stranger_as_of) if self.stranger_as_of else (self.reason,)


class Admission(NamedTuple):
    site: int
    channel: Channel
    incarnation: int
    introduction: Introduction


class Acquaintances(Protocol):
    """What this site knows of the others, and is told of itself; see Peers."""

    def introduction(self) -> Introduction:
        """What this site says of itself."""
        ...

    def knows(self, site: int, introduction: Introduction) -> bool:
        """Whether a site that introduces itself so is one to talk with."""
        ...

    def name_of(self, site: int) -> str | None:
        """What its certificate has to name; None if that is not known."""
        ...

    def stranger_as_of(self, site: int) -> int:
        """By the committed configuration of which index a site is not a member, 0 if that is not known for sure."""
        ...

    def introduced(self, site: int, introduction: Introduction) -> None:
        """A site that is known has introduced itself."""
        ...

    def called_stranger(self, by: int, index: int) -> None:
        """A peer says that by its configuration of this index this site is not a member."""
        ...


class Handshake:
    """Both sides of it, as this site holds them: by its own identity, and by what it knows of the others."""

    def __init__(
        self, site: int, cluster: str, incarnation: int, acquaintances: Acquaintances, tls: Tls | None
    ) -> None:
        """`incarnation`: random, by which this daemon knows itself from another one that calls itself so."""
        self.site = site
        self.cluster = cluster
        self.acquaintances = acquaintances
        self.tls = tls
        """May be replaced at any time: connections that are there go on, new ones take the new certificates. It
        never becomes None, nor something after None."""
        self.on_rival: Callable[[int, Rival], None] = lambda by, rival: None
        """A peer says that another daemon is this site, and alive. May be set later."""
        self.identities = Identities()
        self._incarnation = incarnation
        self._refusals: dict[str, float] = {}
        """reason -> when it was logged last; of few kinds, as sites and reasons are."""

    def hello(self, site: int, channel: Channel) -> tuple[object, ...]:
        """The first frame to `site`."""
        own = (wire.PROTOCOL_VERSION, self.cluster, self.site, site, int(channel), self._incarnation)
        return (HELLO, MAGIC, *own, *self.acquaintances.introduction())

    def admit(self, fields: list[Any], certificate: Mapping[str, Any] | None) -> Refusal | Admission:
        """Who has dialled, by its first frame and its certificate, or why it is not one to talk with. Raises
        ProtocolError."""
        if len(fields) < 3 or fields[:2] != [HELLO, MAGIC]:
            raise ProtocolError("the first frame is not a mysqlraft handshake")
        if fields[2] != wire.PROTOCOL_VERSION:
            return Refusal(
                f"protocol version {fields[2]!r:.20} is spoken there, {wire.PROTOCOL_VERSION} by site {self.site}"
            )
        if [type(field) for field in fields[3:]] != _HELLO_TYPES or fields[6] not in list(Channel):
            raise ProtocolError("malformed handshake")
        _, _, _, cluster, sender, wanted, channel, incarnation, *introduction = fields
        introduced = Introduction(*introduction)
        if cluster != self.cluster:
            return Refusal(
                f"cluster {cluster!r:.80} is not cluster {self.cluster!r}, to which site {self.site} belongs"
            )
        if wanted != self.site:
            return Refusal(f"site {sender} looks for site {wanted} here, but this is site {self.site}")
        if sender == self.site and incarnation != self._incarnation:
            return Refusal(f"another daemon calls itself site {self.site}, too")
        if sender == self.site or not self.acquaintances.knows(sender, introduced):
            reason = f"site {sender} is not a member of the cluster as site {self.site} knows it"
            return Refusal(reason, self.acquaintances.stranger_as_of(sender))
        misnamed = self.misnamed(sender, certificate, introduced.name)
        if misnamed is not None:
            return Refusal(misnamed)
        return Admission(sender, Channel(channel), incarnation, introduced)

    def claim(self, admission: Admission, where: str, heard: Mapping[int, float]) -> Refusal | None:
        """Why the daemon that was admitted is not the site, None if it is; see `Identities.claim`."""
        site = admission.site
        rival = self.identities.claim(site, admission.incarnation, where, heard, time.monotonic())
        if rival is None:
            return None
        reason = f"another daemon is site {site} here, connected from {rival.where}"
        if not rival.proven:
            reason += "; if it has ended, that is found out in a few seconds"
        return Refusal(reason, rival=rival)

    def misnamed(self, site: int, certificate: Mapping[str, Any] | None, introduced: str = "") -> str | None:
        """Why a peer with this certificate is not `site`, None if it is (or there is no TLS). `introduced`: the name
        that it gives itself, which counts if no other is known."""
        if self.tls is None:
            return None
        name = self.acquaintances.name_of(site) or introduced
        if not name:
            return f"the name of site {site}, which its certificate has to hold, is not known at site {self.site}"
        if certificate is None or name not in names(certificate):
            return f"the certificate shown is not that of site {site}, {name}, but of {shown_names(certificate or {})}"
        return None

    def log_refusal(self, reason: str, peer: str) -> None:
        """Once in a while for each reason: a site that was removed dials on."""
        now = time.monotonic()
        if now - self._refusals.get(reason, -REFUSAL_SECONDS) >= REFUSAL_SECONDS:
            self._refusals[reason] = now
            logger.error("connection refused: %s peer=%s", reason, peer)
