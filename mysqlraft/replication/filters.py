"""Which tables are replicated: patterns of ``schema.table``, where ``*`` is any text and ``?`` any one character.

A table is replicated if an include pattern matches it and no exclude pattern does. The system schemas and the daemon's
own are never replicated, whatever the patterns say. The same at every site, or the sites diverge.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mysqlraft.binlog.own_schema import NEVER


class TableFilter:
    """A compiled set of patterns; remembers its answers. A pure function of names."""

    def __init__(
        self, include: Iterable[str] = ("*.*",), exclude: Iterable[str] = (), *, any_case: bool = False
    ) -> None:
        """``any_case``: of a server that does not tell names apart by case; then patterns do not, either.

        Raises ValueError for a pattern that is not ``schema.table``.
        """
        self._any_case = any_case
        self._include = [_compile(pattern, any_case) for pattern in include]
        self._exclude = [_compile(pattern, any_case) for pattern in exclude]
        self._excluded_schemas = [schema for schema, table in self._exclude if table.pattern == _ANY]
        self._known: dict[tuple[str, str | None], bool] = {}

    def __call__(self, schema: str, table: str | None) -> bool:
        """Whether the table is replicated; without a table: whether any table of the schema may be."""
        answer = self._known.get((schema, table))
        if answer is None:
            answer = self._known[schema, table] = self._decide(schema, table)
        return answer

    def all_of(self, schema: str) -> bool:
        """Whether every table that the schema may ever have is replicated."""
        return any(s.fullmatch(schema) and t.pattern == _ANY for s, t in self._include) and not any(
            s.fullmatch(schema) for s, _ in self._exclude
        )

    def _decide(self, schema: str, table: str | None) -> bool:
        if (schema.lower() if self._any_case else schema) in NEVER:
            return False
        if table is None:
            return any(s.fullmatch(schema) for s, _ in self._include) and not any(
                s.fullmatch(schema) for s in self._excluded_schemas
            )
        return _matches(self._include, schema, table) and not _matches(self._exclude, schema, table)


_ANY = ".*"
_Pattern = tuple[re.Pattern[str], re.Pattern[str]]


def _compile(pattern: str, any_case: bool) -> _Pattern:
    schema, dot, table = pattern.partition(".")
    if not (schema and dot and table):
        raise ValueError(f"{pattern!r} is not a pattern of the form schema.table")
    return _wildcard(schema, any_case), _wildcard(table, any_case)


def _wildcard(text: str, any_case: bool) -> re.Pattern[str]:
    parts = {"*": _ANY, "?": "."}
    flags = re.DOTALL | re.IGNORECASE if any_case else re.DOTALL
    return re.compile("".join(parts.get(char) or re.escape(char) for char in text), flags)


def _matches(patterns: list[_Pattern], schema: str, table: str) -> bool:
    return any(s.fullmatch(schema) and t.fullmatch(table) for s, t in patterns)
