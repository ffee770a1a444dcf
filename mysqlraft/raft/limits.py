"""How long the core waits, and how much it sends and keeps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in ticks, sizes in bytes."""

    election_ticks: int = 10
    """A follower that hears nothing for this long, up to twice this long (drawn anew each time), tries to lead. The
    leader steps down when it hears from no majority for this long, and gives up a transfer after it."""
    heartbeat_ticks: int = 3
    append_bytes: int = 512 * 1024
    """Entries in one AppendRequest: at least one, and no more than fit into this."""
    window_bytes: int = 8 * 1024 * 1024
    """Appends on the way to one follower; at least bandwidth x round-trip time to fill a long line."""
    watchdog_ticks: int = 80
    """A pipeline in which nothing is acknowledged for this long, though the follower lives, starts again."""
    preference_ticks: int = 100
    """A voter that should rather lead than the leader has to be fit for it for this long before it takes over. A
    witness that leads waits only after a transfer that failed."""
    cache_bytes: int = 16 * 1024 * 1024
    """Entries kept in memory after they are on disk."""
    snapshot_chunk_bytes: int = 256 * 1024
    """One message of a snapshot's transfer."""
    snapshot_window_bytes: int = 4 * 1024 * 1024
    """Of a snapshot's transfer, what is on the way to the follower or in its memory."""
