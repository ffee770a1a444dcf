"""Handing leadership over: to whom, and for how long it is tried. What is sent for it, core.py says."""

from __future__ import annotations

from mysqlraft.raft.configuration import NOBODY, ConfigurationError, Server
from mysqlraft.raft.followers import Followers
from mysqlraft.raft.members import Members
from mysqlraft.raft.preference import Preference


class LeadershipTransfer:
    """One leader's, to one voter at a time. Bounded by an election timeout, after which it goes on leading
    (hashicorp #487)."""

    def __init__(self, site: int, members: Members, followers: Followers, election_ticks: int) -> None:
        self._site = site
        self._members = members
        self._followers = followers
        self._election_ticks = election_ticks
        self.target = NOBODY
        """Proposals are refused while it is somebody (hashicorp #696)."""
        self._elapsed = 0
        self._preference = Preference(0)

    def clear(self) -> None:
        self.target = NOBODY

    def lead(self, stable_ticks: int) -> None:
        """This site leads from now on, and gives way to who has been fit to for so long; a witness at once."""
        self._preference = Preference(stable_ticks, at_once=self._members.is_witness)

    @property
    def ahead(self) -> bool:
        """Whether one is under way, or will be before long."""
        return self.target != NOBODY or bool(self._better())

    def begin(self, target: int) -> None:
        self.target = target
        self._elapsed = 0

    def tick(self) -> int:
        """Who did not take over in time, NOBODY if there is still time."""
        self._elapsed += 1
        if self._elapsed < self._election_ticks:
            return NOBODY
        late, self.target = self.target, NOBODY
        self._preference.failed(late)
        return late

    def choose(self, target: int) -> int:
        """`target`, or for NOBODY the voter that is most fit to lead. Raises ConfigurationError if there is no such
        voter."""
        others = self._other_voters()
        if target == NOBODY and others:
            return max(others, key=self._followers.fitness).site
        chosen = next((server for server in others if server.site == target), None)
        if chosen is None:
            raise ConfigurationError(f"site {target} is not another voter: leadership cannot go there")
        if chosen.witness:
            raise ConfigurationError(f"site {target} is a witness: it leads only while no other voter can")
        return target

    def preferred(self) -> tuple[int, str] | None:
        """A tick has passed: the voter to give way to, which should rather lead and has been fit to for long enough,
        and why; None if there is none."""
        better = self._better()
        self._preference.tick([server.site for server in better])
        configuration, failures = self._members.configuration, self._preference.failures
        # Who has failed may do so again, while another could lead.
        chosen = max(better, key=lambda each: (-failures(each.site), self._followers.fitness(each)), default=None)
        if configuration is None or chosen is None or not self._preference.due(chosen.site):
            return None
        own = configuration.servers[self._site]
        why = f"which has priority {chosen.priority} (own: {own.priority})" if own.rank[0] else "this is a witness"
        return chosen.site, why

    def _better(self) -> list[Server]:
        """The voters that should rather lead than this one, and are fit to."""
        configuration = self._members.configuration
        if configuration is None or self._site not in configuration:
            return []
        rank, caught_up = configuration.servers[self._site].rank, self._followers.caught_up
        return [server for server in self._other_voters() if server.rank > rank and caught_up(server.site)]

    def _other_voters(self) -> list[Server]:
        configuration = self._members.configuration
        if configuration is None:
            return []
        return [configuration.servers[site] for site in configuration.voters if site != self._site]
