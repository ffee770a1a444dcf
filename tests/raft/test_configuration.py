"""Configurations: what is one, how it travels, and what one change makes of it."""

from __future__ import annotations

import msgpack
import pytest

from mysqlraft.raft import Change, Configuration, ConfigurationError, Server
from mysqlraft.raft.quorum import Vote, agreed, majority, tally
from tests.raft.cluster import configuration, ranked


def test_it_survives_encoding() -> None:
    made = configuration(3, 2)
    again = Configuration.decode(made.encode())
    assert again == made
    assert hash(again) == hash(made)
    assert (again.voters, again.nonvoters) == ((1, 2, 3), (4, 5))
    assert "5=site5@host5:1000 (nonvoter)" in str(again)
    assert 3 in again
    mixed = ranked(("voter", 7), ("witness", 0))
    assert Configuration.decode(mixed.encode()) == mixed
    assert str(mixed) == "1=site1@host1:1000 (priority 7), 2=site2@host2:1000 (witness)"
    assert 9 not in again


def test_one_of_the_first_version_still_decodes() -> None:
    payload = msgpack.packb([(1, "a", "h:1", True), (2, "b", "h:2", False)])
    assert Configuration.decode(payload) == Configuration([Server(1, "a", "h:1"), Server(2, "b", "h:2", False)])


def test_the_order_of_the_servers_does_not_matter() -> None:
    servers = list(configuration(3).servers.values())
    assert Configuration(reversed(servers)).encode() == Configuration(servers).encode()


@pytest.mark.parametrize(
    "servers, reason",
    [
        ([], "at least one voter"),
        ([Server(1, "a", "h:1", False)], "at least one voter"),
        ([Server(1, "a", "h:1", witness=True)], "no witness"),
        ([Server(1, "a", "h:1", priority=101)], "priority 101 is not in 0..100"),
        ([Server(0, "a", "h:1")], "not in 1..15"),
        ([Server(16, "a", "h:1")], "not in 1..15"),
        ([Server(1, "a", "h:1"), Server(1, "b", "h:2")], "same site id"),
        ([Server(1, "a", "h:1"), Server(2, "a", "h:2")], "same name"),
        ([Server(1, "a", "h:1"), Server(2, "b", "h:1")], "same address"),
        ([Server(1, "a", "h")], "not host:port"),
        ([Server(1, "a", ":1")], "not host:port"),
        ([Server(1, "a", "h:0")], "not host:port"),
        ([Server(1, "a", "h:65536")], "not host:port"),
        ([Server(1, "a", "h:x")], "not host:port"),
        ([Server(1, "a", "h h:1")], "not host:port"),
        ([Server(1, "a", "h\0:1")], "not host:port"),
        ([Server(1, "a", "::1:1")], "not host:port"),
        ([Server(1, "", "h:1")], "name '' is not"),
        ([Server(1, "a\nb", "h:1")], "is not 1 to 64 letters"),
        ([Server(1, "a" * 65, "h:1")], "is not 1 to 64 letters"),
    ],
)
def test_what_is_not_one_is_refused(servers: list[Server], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        Configuration(servers)


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x91\x01", b"\xa3abc"])
def test_what_does_not_decode_is_refused(payload: bytes) -> None:
    with pytest.raises(ConfigurationError):
        Configuration.decode(payload)


def test_changes() -> None:
    made = configuration(3)
    new = Server(4, "site4", "host4:1000")
    made = made.changed(Change.ADD_NONVOTER, new)
    assert (made.voters, made.nonvoters) == ((1, 2, 3), (4,))
    made = made.changed(Change.PROMOTE, new)
    assert made.voters == (1, 2, 3, 4)
    made = made.changed(Change.READDRESS, Server(4, "", "elsewhere:1000"))
    assert made.servers[4] == Server(4, "site4", "elsewhere:1000")
    made = made.changed(Change.PRIORITIZE, Server(4, "", "", priority=9))
    assert made.servers[4] == Server(4, "site4", "elsewhere:1000", priority=9)
    made = made.changed(Change.DEMOTE, new)
    assert made.nonvoters == (4,)
    made = made.changed(Change.REMOVE, new)
    assert made == configuration(3)
    with pytest.raises(ConfigurationError, match="already a member"):
        made.changed(Change.ADD_NONVOTER, Server(1, "x", "x:1"))
    with pytest.raises(ConfigurationError, match="not a member"):
        made.changed(Change.REMOVE, new)
    with pytest.raises(ConfigurationError, match="changes nothing: it is a voter at host1:1000"):
        made.changed(Change.PROMOTE, Server(1, "", ""))
    with pytest.raises(ConfigurationError, match="same address"):
        made.changed(Change.READDRESS, Server(1, "", "host2:1000"))
    with pytest.raises(ConfigurationError, match="no voter that is no witness"):
        ranked(("voter", 0), ("witness", 0)).changed(Change.REMOVE, Server(1, "", ""))
    with pytest.raises(ConfigurationError, match="leave no voter"):
        configuration(1, 1).changed(Change.DEMOTE, Server(1, "", ""))


def test_majorities() -> None:
    assert [majority(count) for count in range(1, 7)] == [1, 2, 2, 3, 3, 4]
    match = {1: 10, 2: 7, 3: 5, 4: 3}
    assert agreed((1, 2, 3), match.__getitem__) == 7
    assert agreed((1, 2, 3, 4), match.__getitem__) == 5
    assert agreed((4,), match.__getitem__) == 3
    assert tally((1, 2, 3), {1: True}) is Vote.PENDING
    assert tally((1, 2, 3), {1: True, 9: True}) is Vote.PENDING
    assert tally((1, 2, 3), {1: True, 2: True}) is Vote.WON
    assert tally((1, 2, 3), {1: True, 2: False, 3: False}) is Vote.LOST
    assert tally((1, 2, 3, 4), {1: True, 2: True, 3: False, 4: False}) is Vote.LOST
