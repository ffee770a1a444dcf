"""Who is in the cluster, by this site's log: the latest configuration there is in force, committed or not."""

from __future__ import annotations

from mysqlraft.raft.configuration import Change, Configuration, ConfigurationError, Server
from mysqlraft.raft.log import RaftLog
from mysqlraft.raft.store import Store


class NotYet(ConfigurationError):
    """A change that cannot be made now, but perhaps in a moment."""


class Members:
    """The configuration in force at this site, and what follows from it and from those before."""

    def __init__(self, site: int, log: RaftLog, store: Store) -> None:
        self._site = site
        self._log = log
        self._store = store
        self.configuration: Configuration | None = None
        """None before this site has received one."""
        self.voters: tuple[int, ...] = ()
        self.adopt()

    def adopt(self) -> None:
        """The latest configuration in the log is the one in force."""
        self.configuration = self._log.configurations[-1][1] if self._log.configurations else None
        self.voters = self.configuration.voters if self.configuration is not None else ()

    @property
    def outdated(self) -> bool:
        """Whether another one is the latest in the log."""
        return (self._log.configurations[-1][1] if self._log.configurations else None) is not self.configuration

    @property
    def index(self) -> int:
        """The index of its entry, 0 if there is none."""
        return self._log.configurations[-1][0] if self._log.configurations else 0

    @property
    def introduction(self) -> int:
        """The index of the configuration with which this site introduces itself, 0 if it is no member."""
        return self.index if self.configuration is not None and self._site in self.configuration else 0

    def knows(self, site: int, introduction: int) -> bool:
        """Whether to talk to a site that introduces itself so: a member, or one by a configuration that is newer than
        ours: we were away, or never a member."""
        if self.configuration is not None and site in self.configuration:
            return True
        return introduction > self.index or site in self.acquaintances

    @property
    def acquaintances(self) -> dict[int, Server]:
        """All members of the last committed configuration and of those after it. Of these, the ones that have not
        committed may still be replaced, by a leader that they leave out."""
        known: dict[int, Server] = {}
        for index, configuration in reversed(self._log.configurations):
            known = {**configuration.servers, **known}
            if index <= self._log.commit:
                break
        return known

    @property
    def is_voter(self) -> bool:
        return self.configuration is not None and self._site in self.configuration.voters

    @property
    def is_witness(self) -> bool:
        return (
            self.configuration is not None
            and self._site in self.configuration
            and (self.configuration.servers[self._site].witness)
        )

    @property
    def may_campaign(self) -> bool:
        """A voter may, and so may one whose demotion or removal is in its log but not committed: its log may be the
        only one that is complete enough to lead (thesis, 4.2.2)."""
        if self.is_voter:
            return True
        configurations = self._log.configurations
        if len(configurations) < 2 or configurations[-1][0] <= self._log.commit:
            return False
        return self._site in configurations[-2][1].voters

    @property
    def are_forced(self) -> bool:
        """They were forced on this site (recovery.py) and are in no log, until the next leader puts them into its own.
        That must be the site with the most complete log, which may hold committed entries that a majority of these
        members lacks: so until then a leader needs the votes of them all."""
        return 0 < self.index <= self._store.recovered

    def changed(self, change: Change, server: Server, expected_index: int, term: int) -> Configuration:
        """The configuration that differs by one member, if the leader of `term` may propose it now; see
        RaftCore.propose_change. Raises ConfigurationError."""
        if self._log.term(self._log.commit) != term:
            # Without this, two leaders in a row can each change the same configuration (Ongaro's correction, 2015).
            raise NotYet("this leader has not committed an entry of its own term yet: try again")
        if self.index > self._log.commit:
            raise NotYet(f"the change at index {self.index} has not committed yet")
        if expected_index != self.index or self.configuration is None:
            raise ConfigurationError(
                f"the configuration changed: it is the one at index {self.index}, not {expected_index}"
            )
        return self.configuration.changed(change, server)
