"""Scheduled events: at every site, and run by one.

The site whose session made an event, or enabled it last, runs it, and what it changes is replicated as rows. So the
others get its statement with DISABLE ON SLAVE in place of the status that it names, as a native replica would have it.
An ALTER EVENT that names no status leaves it as it is at each site.
"""

from __future__ import annotations

from collections.abc import Sequence

from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.statements import Word, words

_DISABLED = "DISABLE ON SLAVE"
"""Both kinds of server, and all their versions, know it by this name."""
_STATES = ("ENABLE", "DISABLE")


def elsewhere(text: str, invoker: tuple[str, str] | None) -> str:
    """What the other sites have to run for CREATE, ALTER or DROP EVENT.

    ``invoker``: the account that ran it, where it becomes the event's definer without being named in the statement.
    """
    for first, end, new in reversed(_edits(text, invoker)):
        text = text[:first] + new + text[end:]
    return text


def elsewhere_in_bytes(characters: Sequence[bytes], invoker: tuple[str, str] | None) -> bytes:
    """The same of a statement in another character set than UTF-8, given as its characters: nothing else of it changes.

    Raises:
        BinlogError: the invoker's name has other characters than ASCII.
    """
    found = list(characters)
    text = "".join(one.decode() if one.isascii() else "\ufffd" for one in found)
    for first, end, new in reversed(_edits(text, invoker)):
        if not new.isascii():
            raise BinlogError(f"ALTER EVENT by {new}, whose name cannot be put into a statement that is not in UTF-8")
        found[first:end] = [new.encode()]
    return b"".join(found)


def _edits(text: str, invoker: tuple[str, str] | None) -> list[tuple[int, int, str]]:
    """(start, end, what stands there instead), in order."""
    found = list(words(text))
    at = _find(found, 0, "EVENT")
    if at is None or found[0].text.upper() == "DROP":
        return []
    creates = found[0].text.upper() == "CREATE"
    edits: list[tuple[int, int, str]] = []
    if invoker is not None and _find(found[:at], 0, "DEFINER") is None:
        user, host = (name.replace("`", "``") for name in invoker)
        edits.append((found[at].start, found[at].start, f"DEFINER=`{user}`@`{host}` "))
    # The event's name comes before everything that has a meaning, and may be such a word itself.
    start = at + (4 if creates and found[at + 1].text.upper() == "IF" and not found[at + 1].quoted else 1) + 1
    while start < len(found) and found[start].text == "." and not found[start].quoted:
        start += 2
    body = _find(found, start, "DO")
    head = found[:body]
    state = _find(head, start, *_STATES)
    if state is not None:
        after = [word.text.upper() for word in head[state + 1 : state + 3]]
        last = state + 2 if after[:1] == ["ON"] and after[1:] != ["COMPLETION"] else state
        edits.append((head[state].start, head[last].end, _DISABLED))
    elif creates:
        comment = _find(head, start, "COMMENT")
        before = found[comment] if comment is not None else found[body] if body is not None else None
        place = len(text) if before is None else before.start
        edits.append((place, place, _DISABLED + " "))
    return edits


def _find(found: list[Word], start: int, *wanted: str) -> int | None:
    """Where the first of these words stands, from ``start`` on and outside parentheses."""
    depth = 0
    for number in range(start, len(found)):
        word = found[number]
        if word.quoted:
            continue
        depth += (word.text == "(") - (word.text == ")")
        if not depth and word.text.upper() in wanted:
            return number
    return None
