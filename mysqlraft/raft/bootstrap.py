"""How a cluster begins: every founding site writes the same first entry, the first configuration."""

from __future__ import annotations

from mysqlraft.raft.configuration import Configuration, ConfigurationError
from mysqlraft.raft.entry import Entry, EntryKind
from mysqlraft.raft.store import HardState, Store, Write

BOOTSTRAP_TERM = 1


def bootstrap(store: Store, configuration: Configuration) -> bool:
    """Make `configuration` the first entry of an empty log. True if that was done now.

    Doing it again changes nothing. Raises ConfigurationError for a different configuration, and for a log that
    began elsewhere (of a site that joined a running cluster).
    """
    before = store.bootstrapped
    if before == configuration:
        return False
    if before is not None:
        raise ConfigurationError(
            f"this site was bootstrapped with {{{before}}} and cannot be bootstrapped again with {{{configuration}}}; "
            "members are changed at run time, not by another bootstrap"
        )
    if store.last_index or store.hard_state.term:
        raise ConfigurationError(
            f"this site has a log (up to {store.last_index}) that it received from a cluster: "
            f"it cannot be bootstrapped with {{{configuration}}}"
        )
    first = Entry(1, BOOTSTRAP_TERM, EntryKind.CONFIGURATION, payload=configuration.encode())
    store.write([Write(HardState(BOOTSTRAP_TERM), [first], bootstrap=configuration)])
    return True
