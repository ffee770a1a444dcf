"""Folding strings so that those equal under a collation become the same bytes.

Theory of operation
-------------------

A server compares strings of a collation by their *weights*, and ``WEIGHT_STRING()`` gives these, contractions,
expansions and ignorable characters included. So the fold of a string is its weight string, asked of the site's own
server: exact for all of the several hundred collations of both servers, without a table of them here. Where a collation
has several levels only the first is used, and trailing spaces never count: both only make more strings fold alike.

Asking costs a round trip, so it is only done where it must be:

- Binary collations (``_bin``) compare bytes; nothing is asked.
- Each collation is examined once: the weights of its single ASCII characters, and whether the weights of text are
  those of its characters one after the other. Text that holds all pairs of characters and all triples of letters
  tells: a contraction shows. If so, ASCII strings are folded here, by ``bytes.translate``. The weight of an ASCII
  character is then written as the first such character of that weight, so that both ways meet.
- The answers are remembered: up to `REMEMBERED` short strings a collation.

Weights of a collation never change: indexes on disk depend on them. So folds agree among sites and over time. Between
MySQL and MariaDB they agree where the weights do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import product
from typing import Any

from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.values import string

REMEMBERED = 1 << 16
"""Folded strings kept for each collation and prefix."""
SHORT = 256
"""Bytes of a string that is worth being kept."""

Query = Callable[[str], Sequence[Sequence[Any]]]
"""Runs one statement on the site's server and returns its rows."""

LARGEST = 4 << 20
"""Bytes of a string that the server may be asked about."""
_SAMPLE_TOGETHER = 1 << 13
"""Characters that it is asked about together: if its max_allowed_packet is small, the answer for more is NULL."""

_NOT_ASCII = frozenset(("ucs2", "utf16", "utf16le", "utf32"))


class Fold:
    """How the strings of one collation are folded.

    ``ascii``: a translation table for strings of ASCII alone, with ``ignored`` deleted and ``pad`` stripped from the
    end; None if they too must go through `prefixed`.
    """

    def __init__(
        self,
        whole: Callable[[bytes, int], bytes],
        beginning: Callable[[bytes, int], bytes],
        ascii_table: bytes | None,
        ignored: bytes = b"",
        pad: bytes = b" ",
    ) -> None:
        """``beginning``: gives of a string the part that holds so many characters, counted from its start."""
        self._whole = whole
        self._beginning = beginning
        self._prefixed: dict[int, Callable[[bytes], bytes]] = {}
        self.ascii = ascii_table
        self.ignored = ignored
        self.pad = pad

    def prefixed(self, characters: int) -> Callable[[bytes], bytes]:
        """The fold of any string's first `characters`; 0: of all."""
        if characters not in self._prefixed:
            whole, beginning = self._whole, self._beginning

            @lru_cache(maxsize=REMEMBERED)
            def remembered(value: bytes) -> bytes:
                return whole(value, characters)

            def fold(value: bytes) -> bytes:
                return remembered(value) if len(value) <= SHORT else whole(value, characters)

            # Of a large value no more is sent than counts.
            self._prefixed[characters] = (lambda value: fold(beginning(value, characters))) if characters else fold
        return self._prefixed[characters]


class Collations:
    """The collations of one server. Not for use by several threads."""

    def __init__(self, query: Query) -> None:
        self._query = query
        self._known: dict[int, tuple[str, str, int]] = {}
        self._folds: dict[int, Fold] = {}
        self._level = ""

    def charset(self, collation: int) -> str:
        """The character set of a collation by its number.

        Raises:
            LookupError: this server has no such collation.
        """
        return self._find(collation)[1]

    def name(self, collation: int) -> str:
        """The name of a collation by its number.

        Raises:
            LookupError: this server has no such collation.
        """
        return self._find(collation)[0]

    def text(self, value: bytes, charset: str) -> str | None:
        """The text that the bytes are in a character set; None if MySQL finds that they are no text of it, or stops
        before the end."""
        given = f"CONVERT(0x{value.hex()} USING {charset})"
        found, length = self._query(f"SELECT CONVERT({given} USING utf8mb4), LENGTH({given})")[0]
        return None if found is None or int(length) != len(value) else str(found)

    def fold(self, collation: int) -> Fold:
        """How strings of this collation are folded.

        Raises:
            LookupError: this server has no such collation.
        """
        found = self._folds.get(collation)
        if found is None:
            found = self._folds[collation] = self._examine(*self._find(collation))
        return found

    def _find(self, collation: int) -> tuple[str, str, int]:
        """(name, character set, bytes of its longest character)."""
        if collation not in self._known:
            widths = {str(row[0]): int(row[3]) for row in self._query("SHOW CHARACTER SET")}
            applicability = "information_schema.COLLATION_CHARACTER_SET_APPLICABILITY"
            mariadb = "mariadb" in str(self._query("SELECT VERSION()")[0][0]).lower()
            # MySQL ends each level with two zero bytes instead.
            self._level = " LEVEL 1" if mariadb else ""
            columns = {str(row[0]).upper() for row in self._query(f"SHOW COLUMNS FROM {applicability}")}
            if "FULL_COLLATION_NAME" in columns:  # MariaDB >= 10.10
                rows = self._query(f"SELECT ID, FULL_COLLATION_NAME, CHARACTER_SET_NAME FROM {applicability}")
            else:
                rows = self._query("SELECT ID, COLLATION_NAME, CHARACTER_SET_NAME FROM information_schema.COLLATIONS")
            self._known = {
                int(number): (str(name), str(charset), widths.get(charset, 4))
                for number, name, charset in rows
                if number is not None and charset is not None
            }
        try:
            return self._known[collation]
        except KeyError:
            raise LookupError(f"this server has no collation number {collation}") from None

    def _examine(self, name: str, charset: str, width: int) -> Fold:
        if name.endswith("_bin"):
            return self._binary(charset, width)
        levels = "_0900_" in name
        beginning = partial(_beginning, charset, width)

        def asked(*texts: str) -> list[bytes]:
            found = self._query("SELECT " + ", ".join(f"WEIGHT_STRING({text}{self._level})" for text in texts))[0]
            if None in found:
                raise BinlogError(
                    f"the server's max_allowed_packet is too small to compare strings of {name}: raise it"
                )
            return [_first_level(bytes(each)) if levels else bytes(each) for each in found]

        def literal(value: bytes) -> str:
            if len(value) > LARGEST:
                raise BinlogError(
                    f"a value of {len(value)} bytes, collation {name}, in a unique key: at most {LARGEST}"
                )
            return f"{string(value, charset)} COLLATE {name}"

        def weights(value: bytes, characters: int = 0, *, trim: bool = False) -> bytes:
            text = literal(value)
            if characters:
                text = f"LEFT({text}, {characters})"
            if trim:
                text = f"RTRIM({text})"
            return asked(text)[0]

        if charset in _NOT_ASCII:
            space = weights(" ".encode({"utf16le": "utf-16-le", "utf32": "utf-32-be"}.get(charset, "utf-16-be")))
            return Fold(lambda value, n: _strip(weights(value, n, trim=True), space), beginning, None)
        single = asked(*(literal(bytes((code,))) for code in range(128)))
        lengths = {len(weight) for weight in single if weight}
        if len(lengths) != 1 or any(weights(text) != b"".join(single[code] for code in text) for text in _samples()):
            return Fold(lambda value, n: _strip(weights(value, n, trim=True), single[0x20]), beginning, None)

        (unit,) = lengths
        representative: dict[bytes, bytes] = {}
        for code, weight in enumerate(single):
            representative.setdefault(weight, bytes((code,)))
        table = b"".join(representative[weight] for weight in single) + bytes(range(128, 256))
        ignored = bytes(code for code, weight in enumerate(single) if not weight)
        pad = representative[single[0x20]]

        def whole(value: bytes, characters: int) -> bytes:
            found = weights(value, characters, trim=True)
            parts = (found[at : at + unit] for at in range(0, len(found), unit))
            return b"".join(representative.get(part) or b"\xff" + part for part in parts).rstrip(pad)

        return Fold(whole, beginning, table, ignored, pad)

    @staticmethod
    def _binary(charset: str, width: int) -> Fold:
        beginning = partial(_beginning, charset, width)
        if charset in _NOT_ASCII:
            space = " ".encode({"utf16le": "utf-16-le", "utf32": "utf-32-be"}.get(charset, "utf-16-be"))
            # Bytes are at least half a character: cutting by twice the characters' least size never cuts too little.
            return Fold(lambda value, n: _strip(value[: n * len(space)] if n else value, space), beginning, None)
        return Fold(lambda value, n: (value[:n] if n else value).rstrip(b" "), beginning, bytes(range(256)))


def _beginning(charset: str, width: int, value: bytes, characters: int) -> bytes:
    """What of the value holds its first so many characters, each of ``width`` bytes at most; all of it where it cannot
    be told where a character begins."""
    end = characters * width
    if end >= len(value):
        return value
    if charset.startswith("utf8"):
        while end and value[end] & 0xC0 == 0x80:
            end -= 1
    elif charset in ("utf16", "utf16le"):
        # Half of a pair of surrogates belongs to no character that counts.
        end -= 2 * (value[end - 2 if charset == "utf16" else end - 1] & 0xFC == 0xD8)
    elif width > 1 and charset not in ("ucs2", "utf32"):
        return value
    return value[:end]


def _strip(weights: bytes, space: bytes) -> bytes:
    """The weights without those of trailing spaces."""
    while space and weights.endswith(space):
        weights = weights[: -len(space)]
    return weights


def _first_level(weights: bytes) -> bytes:
    """Up to the two zero bytes, on an even offset, that end a level."""
    for at in range(0, len(weights), 2):
        if weights[at : at + 2] == b"\0\0":
            return weights[:at]
    return weights


@lru_cache(maxsize=1)
def _samples() -> tuple[bytes, ...]:
    """Texts that hold every pair of ASCII characters and every triple of small letters."""
    pairs = bytes(code for pair in product(range(128), repeat=2) for code in pair)
    letters = range(0x61, 0x7B)
    text = pairs + bytes(code for triple in product(letters, repeat=3) for code in triple)
    # Each text begins with the last two characters of the one before: no triple is missing.
    return tuple(text[max(0, at - 2) : at + _SAMPLE_TOGETHER] for at in range(0, len(text), _SAMPLE_TOGETHER))
