"""A transport's acquaintances, without a Raft behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mysqlraft.raft.handshake import Introduction


class Everybody:
    """Talks with all whom `known` lets in; `names` are what certificates have to hold."""

    def __init__(
        self, known: Callable[[int], bool] = lambda site: True, names: Mapping[int, str] | None = None
    ) -> None:
        self._known = known
        self._names = names or {}

    def introduction(self) -> Introduction:
        return Introduction(0, "", "")

    def knows(self, site: int, introduction: Introduction) -> bool:
        return self._known(site)

    def name_of(self, site: int) -> str | None:
        return self._names.get(site)

    def stranger_as_of(self, site: int) -> int:
        return 0

    def introduced(self, site: int, introduction: Introduction) -> None:
        pass

    def called_stranger(self, by: int, index: int) -> None:
        pass
