"""Declared keys: YAML into frozen dataclasses, with errors that a person can act on.

A section is a dataclass whose fields are made by `key`, `section` and `sections`. Reading collects every problem
before it fails, each with file, line, key path, value and what is allowed; unknown and repeated keys are problems.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mysqlraft.names import ADDRESS, ADDRESS_RULE, NAME, NAME_RULE, PORTS

Parser = Callable[[Any], Any]
T = TypeVar("T")

MAX_CHARACTERS = 64 << 10
"""Of a file; a thousand table patterns fit. PyYAML takes a second for every 100,000 or so."""
MAX_DEPTH = 20
MAX_VALUES = 10_000
"""In a file, those of an alias counted wherever it is used."""
_TOO_DEEP = f"more than {MAX_DEPTH} levels of nesting"
MAX_PROBLEMS = 50
"""Of a file, the first so many are named."""


class ConfigError(ValueError):
    """A configuration that cannot be used; ``problems`` holds one line for each reason."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Refused(ValueError):
    """A parser's refusal of a value; its text is what is allowed instead."""


class ItemsRefused(ValueError):
    """A parser's refusal of some of a value's items; ``items`` holds of each its path below the key (``[2]``,
    ``.dublin``), its value and what is allowed instead."""

    def __init__(self, items: list[tuple[str, Any, str]]) -> None:
        super().__init__("; ".join(f"{below}: {allowed}" for below, _, allowed in items))
        self.items = items


class Reload(StrEnum):
    """What SIGHUP does with a changed key."""

    NOW = "at once"
    REPLICA = "replica"  # the replica process is started again
    RESTART = "restart"  # refused, and logged, until the daemon is started again


# ---------------------------------------------------------------------------------------------------------------------
# Values: a parser takes what YAML gives and returns the value, or raises `Refused`.


def integer(low: int, high: int) -> Parser:
    def parse(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise Refused(f"an integer from {low} to {high}")
        return value

    return parse


def number(low: float, high: float) -> Parser:
    def parse(value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise Refused(f"a number from {low:g} to {high:g}")
        return float(value)

    return parse


def number_or_off(low: float, high: float) -> Parser:
    """None for `off`, which YAML takes for false."""
    parse_number = number(low, high)

    def parse(value: Any) -> float | None:
        if value is False or value == "off":
            return None
        try:
            return float(parse_number(value))
        except Refused as error:
            raise Refused(f"{error}, or off") from None

    return parse


_SIZE = re.compile(r"(\d{1,15})\s*(B|KiB|MiB|GiB)")
_SIZE_UNITS = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}


def size(low: int, high: int) -> Parser:
    """Bytes, as an integer or with a unit."""

    def parse(value: Any) -> int:
        if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
            value = int(match[1]) * _SIZE_UNITS[match[2]]
        if type(value) is not int or not low <= value <= high:
            raise Refused(f"a size from {show_size(low)} to {show_size(high)}, as in 8MiB, 512KiB or 65536")
        return value

    return parse


def show_size(value: int) -> str:
    """``value`` bytes in the largest unit that divides it, as `size` reads it."""
    unit = next(unit for unit, factor in _SIZE_UNITS.items() if value % factor == 0)
    return f"{value // _SIZE_UNITS[unit]}{unit}"


def boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise Refused("true or false")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise Refused("a text that is not empty")
    return value


def name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise Refused(NAME_RULE)
    return value


def path(value: Any) -> Path:
    return Path(text(value)).expanduser()


def one_of(*allowed: str) -> Parser:
    def parse(value: Any) -> Any:
        if value not in allowed:
            raise Refused("one of " + ", ".join(allowed))
        return value

    return parse


def list_of(parse_one: Parser) -> Parser:
    def parse(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Refused("a list")
        return tuple(_each(parse_one, [(f"[{n}]", one) for n, one in enumerate(value)]))

    return parse


def map_of(parse_one: Parser, allowed: str) -> Parser:
    """Names with a value each; ``allowed`` says so."""

    def parse(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Refused(allowed)
        return dict(zip(value, _each(parse_one, [(f".{name}", one) for name, one in value.items()]), strict=True))

    return parse


def _each(parse_one: Parser, items: list[tuple[str, Any]]) -> list[Any]:
    parsed, refusals = [], []
    for below, one in items:
        try:
            parsed.append(parse_one(one))
        except Refused as refused:
            refusals.append((below, one, str(refused)))
    if refusals:
        raise ItemsRefused(refusals)
    return parsed


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP endpoint; written host:port, or [2001:db8::1]:port for IPv6."""

    host: str
    port: int

    @classmethod
    def parse(cls, value: Any) -> Address:
        match = ADDRESS.fullmatch(value if type(value) is str else "")
        if not match or int(match[3]) not in PORTS:
            raise Refused(ADDRESS_RULE)
        return cls(match[1] or match[2], int(match[3]))

    @property
    def loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# ---------------------------------------------------------------------------------------------------------------------
# Declarations.


@dataclass(frozen=True, slots=True)
class Key:
    """How one key is read and explained; ``meaning`` is one line of Markdown."""

    meaning: str
    parse: Parser | None = None
    unit: str = ""
    reload: Reload = Reload.RESTART
    secret: bool = False
    section: type | None = None
    many: bool = False


def key(
    meaning: str,
    parse: Parser,
    *,
    default: Any = MISSING,
    unit: str = "",
    reload: Reload = Reload.RESTART,
    secret: bool = False,
) -> Any:
    """A key that holds a value. Without a default it must be given."""
    declared = Key(meaning, parse, unit, reload, secret)
    return field(default=default, repr=not secret, metadata={"key": declared})


def section(meaning: str, of: type, *, default: Any = MISSING, reload: Reload = Reload.RESTART) -> Any:
    """A key that holds keys. ``default`` is None, or ``of`` itself: every key in it has a default."""
    metadata = {"key": Key(meaning, reload=reload, section=of)}
    if default is of:
        return field(default_factory=of, metadata=metadata)
    return field(default=default, metadata=metadata)


def sections(meaning: str, of: type) -> Any:
    """A key that holds a list of sections."""
    return field(metadata={"key": Key(meaning, section=of, many=True)})


def declared(of: type) -> dict[str, tuple[Field[Any], Key]]:
    """The section's keys by name."""
    return {one.name: (one, one.metadata["key"]) for one in fields(of) if "key" in one.metadata}


def walk(of: type, above: str = "") -> Iterator[tuple[str, Key, Any]]:
    """Every key that holds a value: (path, declaration, default or `MISSING`); list items' paths have ``[]``."""
    for below, (one, key_) in declared(of).items():
        if key_.section is None:
            yield above + below, key_, one.default
        else:
            yield from walk(key_.section, f"{above}{below}{'[]' if key_.many else ''}.")


# ---------------------------------------------------------------------------------------------------------------------
# Reading.


class _Loader(yaml.SafeLoader):
    """Does not follow nesting beyond MAX_DEPTH: PyYAML calls itself for each level."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, _TOO_DEEP, mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class Reader:
    """Reads one text into a section; ``problem`` may add what only the section's own rules can see."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._problems: list[str] = []
        self._lines: dict[str, int] = {}
        self._values = 0

    def read(self, of: type[T], text: str, **given: Any) -> T:
        """An instance of ``of``, which also gets ``given``.

        Raises:
            ConfigError: with the problems found.
        """
        tree = self._tree(text)
        result: T | None = self._section(of, tree, "", given)
        self.check()
        assert result is not None
        return result

    def problem(self, at: str, reason: str) -> None:
        known = at
        while known not in self._lines and known:  # a missing key: the line of what it is missing from
            known = known.rpartition(".")[0]
        where = f"{self._source}:{self._lines.get(known, 1)}"
        at = at if at.isprintable() and len(at) <= 200 else _shown(at)
        self._problems.append(f"{where}: {at}: {reason}" if at else f"{where}: {reason}")

    def check(self) -> None:
        """Raises `ConfigError` if there were problems."""
        if self._problems:
            more = len(self._problems) - MAX_PROBLEMS
            raise ConfigError(*self._problems[:MAX_PROBLEMS], *[f"{self._source}: and {more} more"] * (more > 0))

    def _tree(self, text: str) -> Any:
        if len(text) > MAX_CHARACTERS:
            raise ConfigError(f"{self._source}: larger than {MAX_CHARACTERS:,} characters")
        try:
            loader = _Loader(text)
            try:
                root = loader.get_single_node()
                return {} if root is None else self._plain(loader, root, "", ())
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            raise ConfigError(f"{self._source}{line}: not YAML: {_one_line(error.problem)}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{self._source}: not YAML: {_one_line(error)}") from None

    def _plain(self, loader: yaml.SafeLoader, node: yaml.Node, at: str, above: tuple[yaml.Node, ...]) -> Any:
        """The node's value. Notes every key's line, and refuses repeated keys, of which PyYAML would keep the last."""
        line = node.start_mark.line + 1
        self._lines.setdefault(at, line)
        self._values += 1
        if self._values > MAX_VALUES:
            raise ConfigError(f"{self._source}:{line}: more than {MAX_VALUES:,} values, those of aliases counted")
        if len(above) > MAX_DEPTH:
            raise ConfigError(f"{self._source}:{line}: {_TOO_DEEP}, those of aliases counted")
        if node in above:
            self.problem(at, "an alias that contains itself is not allowed")
        elif isinstance(node, yaml.SequenceNode):
            return [self._plain(loader, one, f"{at}[{n}]", (*above, node)) for n, one in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            mapping: dict[str, Any] = {}
            for key_node, value_node in node.value:
                name = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
                below = f"{at}.{name}" if at else name
                self._lines[below] = key_node.start_mark.line + 1
                if not isinstance(key_node, yaml.ScalarNode):
                    self.problem(below, "a key has to be a name")
                    continue
                if name in mapping:
                    self.problem(below, "is given twice")
                mapping[name] = self._plain(loader, value_node, below, (*above, node))
            return mapping
        else:
            try:
                return loader.construct_object(node, deep=True)
            except (ValueError, LookupError, AttributeError, TypeError, OverflowError):
                # PyYAML takes 2026-02-30 for a date, and does not mind what becomes of it.
                self.problem(at, f"{_shown(node.value)} cannot be read as {node.tag.rpartition(':')[2]}; is it a text?")
        return None

    def _section(self, of: type, tree: Any, at: str, given: Mapping[str, Any]) -> Any:
        """An instance of ``of``; None after a problem."""
        if not isinstance(tree, Mapping):
            self.problem(at, f"{_shown(tree)} is not allowed: a section of keys")
            return None
        known = declared(of)
        prefix = f"{at}." if at else ""
        found = len(self._problems)
        for unknown in tree.keys() - known.keys():
            close = difflib.get_close_matches(unknown, known, 1)
            hint = f"did you mean {close[0]}?" if close else "known here: " + ", ".join(known)
            self.problem(prefix + unknown, f"unknown key; {hint}")
        values = dict(given)
        for below, (one, key_) in known.items():
            required = one.default is MISSING and one.default_factory is MISSING
            if below in tree and not (tree[below] is None and one.default is None):
                values[below] = self._value(key_, tree[below], prefix + below)
            elif required:
                self.problem(prefix + below, f"is missing: {key_.meaning}")
        return of(**values) if len(self._problems) == found else None

    def _value(self, key_: Key, value: Any, at: str) -> Any:
        if key_.section is not None:
            if not key_.many:
                return self._section(key_.section, value, at, {})
            if isinstance(value, list):
                return tuple(self._section(key_.section, one, f"{at}[{n}]", {}) for n, one in enumerate(value))
            self.problem(at, f"{_shown(value)} is not allowed: a list of sections")
            return None
        assert key_.parse is not None
        try:
            return key_.parse(value)
        except Refused as refused:
            unit = f" ({key_.unit})" if key_.unit else ""
            self.problem(at, f"{'****' if key_.secret else _shown(value)} is not allowed: {refused}{unit}")
            return None
        except ItemsRefused as refused:
            for below, one, allowed in refused.items:
                self.problem(at + below, f"{_shown(one)} is not allowed: {allowed}")
            return None


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:200]


# ---------------------------------------------------------------------------------------------------------------------
# Showing and comparing.


def effective(settings: Any) -> dict[str, Any]:
    """Every key with the value in effect, in the types of YAML and JSON; secrets are masked."""
    shown: dict[str, Any] = {}
    for below, (_, key_) in declared(type(settings)).items():
        value = getattr(settings, below)
        if value is None:
            continue
        if key_.many:
            shown[below] = [effective(item) for item in value]
        elif key_.section is not None:
            shown[below] = effective(value)
        elif key_.secret:
            shown[below] = "****"
        elif isinstance(value, tuple):
            shown[below] = list(value)
        elif isinstance(value, Mapping):
            shown[below] = {name: str(one) for name, one in value.items()}
        else:
            shown[below] = str(value) if isinstance(value, Address | Path) else value
    return shown


def changed(old: Any, new: Any, above: str = "") -> dict[str, Reload]:
    """The paths of the keys that differ, and what a reload does with each."""
    found: dict[str, Reload] = {}
    for below, (_, key_) in declared(type(new)).items():
        was, now = getattr(old, below), getattr(new, below)
        if was == now:
            continue
        if key_.section is not None and not key_.many and was is not None and now is not None:
            found |= changed(was, now, f"{above}{below}.")
        else:
            found[above + below] = key_.reload
    return found
