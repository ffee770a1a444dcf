"""Generated code that walks row images: one function for each table and set of columns present.

Why generate. A row image is a bitmap of NULLs and then values of fixed length, or with a length before them. Walking it
with a loop over column descriptions costs a microsecond a column; the same walk written out for one table, neighbouring
fixed-length columns added up beforehand, costs a few hundred nanoseconds a row. Rows without NULL, by far the most,
take a path of their own that looks at the bitmap once.

Bytes are read with plain indexing and slicing: an image that is cut short shows as IndexError or as an end beyond the
data, which every caller checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from mysqlraft.binlog.tablemap import Column

Walker = Callable[[bytes, int], int]
"""(images, start of an image) -> its end."""

_NULL_FREE_PATH = 64
"""Tables of more columns get the general path only: the code would double in size."""


def walk_source(columns: Sequence[Column], wanted: Iterable[int], side: str, indent: str) -> list[str]:
    """Source lines that move ``p`` from an image's start in ``b`` to its end.

    The value (without length bytes) of each column in `wanted`, by its index in the table, is left in the variable
    ``k<index><side>``: None if it is NULL.
    """
    wanted = frozenset(wanted)
    width = (len(columns) + 7) // 8
    if not any(column.nullable for column in columns):
        return _walk(columns, wanted, side, indent, width, nulls=False)
    mask = sum(1 << number for number, column in enumerate(columns) if column.nullable)
    bitmap = "b[p]" if width == 1 else f"int.from_bytes(b[p:p+{width}], 'little')"
    lines = [f"{indent}n = {bitmap} & {mask}"]
    if len(columns) > _NULL_FREE_PATH:
        return lines + _walk(columns, wanted, side, indent, width, nulls=True)
    lines.append(f"{indent}if n:")
    lines += _walk(columns, wanted, side, indent + " ", width, nulls=True)
    lines.append(f"{indent}else:")
    lines += _walk(columns, wanted, side, indent + " ", width, nulls=False)
    return lines


def _walk(
    columns: Sequence[Column], wanted: frozenset[int], side: str, indent: str, offset: int, *, nulls: bool
) -> list[str]:
    """``offset`` counts the bytes that ``p`` has yet to be moved by."""
    lines: list[str] = []

    def flush() -> None:
        nonlocal offset
        if offset:
            lines.append(f"{indent}p += {offset}")
            offset = 0

    for number, column in enumerate(columns):
        name = f"k{column.index}{side}" if column.index in wanted else ""
        if nulls and column.nullable:
            flush()
            lines.append(f"{indent}if n & {1 << number}:")
            lines.append(f"{indent} {name} = None" if name else f"{indent} pass")
            lines.append(f"{indent}else:")
            body, rest = _one(column, name, 0)
            lines += [f"{indent} {line}" for line in body]
            if rest:
                lines.append(f"{indent} p += {rest}")
        else:
            body, offset = _one(column, name, offset)
            lines += [indent + line for line in body]
    flush()
    return lines or [f"{indent}pass"]


def _one(column: Column, name: str, offset: int) -> tuple[list[str], int]:
    """Lines for one value that is not NULL, and the offset after it."""
    if not column.prefix:
        end = offset + column.size
        return ([f"{name} = b[p+{offset}:p+{end}]"] if name else []), end
    start = offset + column.prefix
    if column.prefix == 1:
        length = f"b[p+{offset}]"
    elif column.prefix == 2:
        length = f"b[p+{offset}] + (b[p+{offset + 1}] << 8)"
    else:
        length = f"int.from_bytes(b[p+{offset}:p+{start}], 'little')"
    if not name:
        return [f"p += {start} + {length}"], 0
    return [f"q = p + {start}", f"p = q + {length}", f"{name} = b[q:p]"], 0


@lru_cache(maxsize=4096)
def compile_walker(columns: tuple[Column, ...]) -> Walker:
    """A function that finds where an image of these columns ends."""
    lines = ["def walk(b, p):", *walk_source(columns, (), "", " "), " return p"]
    walker: Walker = run(lines)["walk"]
    return walker


def run(lines: Sequence[str], **names: Any) -> dict[str, Any]:
    """Compiles generated lines; only offsets, lengths and bit masks ever enter them, never text from a server."""
    scope: dict[str, Any] = dict(names)
    exec(compile("\n".join(lines), "<generated row walker>", "exec"), scope)
    return scope
