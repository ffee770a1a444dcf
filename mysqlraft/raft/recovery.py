"""How a cluster that lost its majority goes on: hashicorp/raft's RecoverCluster.

Without a majority of the voters nothing commits, so the members cannot be changed either. `recover` writes other
members straight into a stopped site's store, outside the log: entries made up here could collide with those of a
leader that some site has heard of and this one has not. The members hold in place of all that the log says up to now;
the next leader among them puts them into the log, properly, with its first entries (`RaftCore`), and from then on they
are a configuration like any other. Until then a leader needs the votes of all voters among them: what was committed may
be on one of them only.

What it costs: entries that no recovered site has are gone, although they may have been committed and applied elsewhere;
and the sites left out still believe in the old members. If those come back with their old logs, and are a majority of
the old members, there are two clusters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mysqlraft.files import read_text
from mysqlraft.raft.configuration import Configuration, ConfigurationError, Server
from mysqlraft.raft.store import Store, Write

MAX_CHARACTERS = 64 << 10
"""Of a peers.json."""
_KEYS: dict[str, type] = {
    "id": int, "name": str, "address": str, "non_voter": bool, "witness": bool, "priority": int
}  # fmt: skip


def recover(store: Store, site: int, members: Configuration) -> None:
    """Make `members` the cluster of this stopped site, whatever its log says. To be done at each of them.

    Doing it again changes nothing. Raises what `check` does.
    """
    check(store, site, members)
    store.write([Write(recovery=members)])


def check(store: Store, site: int, members: Configuration) -> None:
    """Raises ConfigurationError if the site is not among them or has no log to go on with."""
    if site not in members:
        raise ConfigurationError(f"site {site} is not among the members {{{members}}}: recover at a site that is")
    if store.last_index == 0:
        raise ConfigurationError("there is no log here that a cluster could go on with")


def read_peers(path: Path, before: Configuration) -> Configuration:
    """The members of a file like hashicorp/raft's peers.json::

        [{"id": 1, "address": "10.1.0.1:7450"}, {"id": 4, "address": "10.4.0.1:7450", "non_voter": true}]

    "name", "witness" and "priority" may be given, too; what is not is what it was in `before`, or the default. A site
    that is new needs its name. Raises ConfigurationError.
    """
    try:
        listed = json.loads(read_text(path, MAX_CHARACTERS), object_pairs_hook=_once)
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise ConfigurationError('this is not a list of members, as in [{"id": 1, "address": "10.1.0.1:7450"}]')
        return Configuration([_server(one, before) for one in listed])
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not JSON: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, in which JSON would let the last of several values win, silently."""
    given = dict(pairs)
    if len(given) < len(pairs):
        raise ConfigurationError(f"{given!r:.100} has a key twice")
    return given


def _server(given: dict[str, Any], before: Configuration) -> Server:
    for key, value in given.items():
        if key not in _KEYS:
            raise ConfigurationError(f"unknown key {key!r}; known are {', '.join(_KEYS)}")
        if type(value) is not _KEYS[key]:
            raise ConfigurationError(f"{key} of {given!r:.100} has to be of type {_KEYS[key].__name__}")
    was = before.servers.get(given.get("id", 0))
    values: dict[str, Any] = {} if was is None else {"name": was.name, "witness": was.witness, "priority": was.priority}
    values |= {key: value for key, value in given.items() if key not in ("id", "non_voter")}
    for key in ("id", "address", "name"):
        if key not in given and key not in values:
            raise ConfigurationError(f"member {given!r:.100} has no {key}")
    return Server(
        given["id"],
        values["name"],
        values["address"],
        not given.get("non_voter", False),
        values.get("witness", False),
        values.get("priority", 0),
    )
