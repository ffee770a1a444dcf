"""One cluster of six sites for each kind of server, lent to one test after another."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mysqlraft.sandbox.cluster import Cluster
from mysqlraft.sandbox.installation import Engine, Installation
from mysqlraft.sandbox.workload import create_tables, missing_tables, wrong_counts

SITES = 6


class Clusters:
    """The cluster of each kind of server; one that a failed test leaves behind is not lent again. Its files stay."""

    def __init__(self, installations: dict[Engine, Installation], directories: Iterator[Path]) -> None:
        self._installations = installations
        self._directories = directories
        self._running: dict[Engine, Cluster] = {}

    def get(self, engine: Engine) -> Cluster:
        """Six running sites in good order, with an empty `shop`."""
        if engine in self._running:
            cluster = self._running[engine]
        else:
            # Two at a time would be too much for the machine.
            self.close()
            cluster = Cluster.create(self._installations[engine], next(self._directories), sites=SITES)
            self._running[engine] = cluster
            cluster.start()
        with cluster[1].server.connect() as connection:
            with connection.cursor() as cursor:
                cursor.execute("DROP DATABASE IF EXISTS shop")
            create_tables(connection)
        # The tables are there, and those of the test before are not.
        cluster.wait_everywhere(lambda connection: missing_tables(connection) or wrong_counts(connection, {}), 60)
        return cluster

    def discard(self, engine: Engine) -> None:
        if (cluster := self._running.pop(engine, None)) is not None:
            cluster.close()

    def close(self) -> None:
        for cluster in self._running.values():
            cluster.close()
            shutil.rmtree(cluster.directory)
        self._running.clear()


@pytest.fixture(scope="session")
def clusters(installations: dict[Engine, Installation], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    clusters = Clusters(installations, (tmp_path_factory.mktemp("six") for _ in itertools.count()))
    yield clusters
    clusters.close()


@pytest.fixture
def cluster(engine: Engine, clusters: Clusters, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Six sites with an empty `shop`."""
    failed = request.session.testsfailed
    try:
        cluster = clusters.get(engine)
    except BaseException:
        clusters.discard(engine)
        raise
    yield cluster
    if request.session.testsfailed > failed:
        clusters.discard(engine)
