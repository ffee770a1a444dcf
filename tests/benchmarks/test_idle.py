"""That the benchmark of idle daemons measures both processes of each."""

from __future__ import annotations

from benchmarks.idle import measure
from mysqlraft.sandbox.servers import Installation


def test_every_daemon_is_measured(installation: Installation) -> None:
    found = measure(installation, sites=2, seconds=2.0, settle=0.0)
    assert len(found) == 2
    assert all(0 < percent < 200 for percent in found)
