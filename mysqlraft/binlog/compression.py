"""Compressed parts of a binlog: MySQL's compressed transactions, MariaDB's compressed events.

MySQL packs a whole transaction into one TRANSACTION_PAYLOAD event (zstd, or not compressed at all): a list of fields,
then the events without checksums. It is unpacked as a stream, so its size does not matter. MariaDB packs the part of a
rows or query event after its fixed fields (zlib) behind a header byte, 0x80 | width, and the unpacked length,
big-endian in so many bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import IO, cast

import zstandard

from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.tablemap import lenenc

_END, _SIZE, _ALGORITHM, _UNPACKED_SIZE = 0, 1, 2, 3
_ZSTD, _NONE = 0, 255
_OUTPUT = 1 << 17
_HEADER = 19
_WINDOW = 1 << 27


def payload_events(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The events inside a TRANSACTION_PAYLOAD, given its body piece by piece.

    Raises:
        BinlogError: garbled, cut short, or packed in a way this mysqlraft does not know.
    """
    source = iter(chunks)
    head = b""
    algorithm, start = None, 0
    while algorithm is None:
        chunk = next(source, None)
        if chunk is None:
            raise BinlogError("a compressed transaction is cut short")
        head += chunk
        try:
            algorithm, start = _fields(head)
        except IndexError:
            continue
        except ValueError as error:
            raise BinlogError(f"a compressed transaction is garbled: {error}") from None
    if algorithm not in (_ZSTD, _NONE):
        raise BinlogError(f"a transaction is compressed by algorithm {algorithm}, unknown to this mysqlraft")
    buffer = b""
    at = 0
    for piece in _unpacked(head[start:], source, algorithm):
        buffer = buffer[at:] + piece
        at = 0
        while len(buffer) - at >= _HEADER:
            size = int.from_bytes(buffer[at + 9 : at + 13], "little")
            if size < _HEADER:
                raise BinlogError("a compressed transaction holds an event too short for its header")
            if size > len(buffer) - at:
                break
            yield buffer[at : at + size]
            at += size
    if at != len(buffer):
        raise BinlogError("a compressed transaction ends inside an event")


def _fields(head: bytes) -> tuple[int, int]:
    """(algorithm, where the packed bytes begin)."""
    at, algorithm = 0, _NONE
    while True:
        kind, at = lenenc(head, at)
        if kind == _END:
            return algorithm, at
        length, at = lenenc(head, at)
        if at + length > len(head):
            raise IndexError
        if kind == _ALGORITHM:
            algorithm = lenenc(head, at)[0]
        elif kind not in (_SIZE, _UNPACKED_SIZE):
            raise ValueError(f"field {kind}")
        at += length


def _unpacked(first: bytes, rest: Iterator[bytes], algorithm: int) -> Iterator[bytes]:
    def packed() -> Iterator[bytes]:
        # Small inputs bound what one step may unpack to.
        for piece in chain((first,), rest):
            for at in range(0, len(piece), _OUTPUT):
                yield piece[at : at + _OUTPUT]

    if algorithm == _NONE:
        yield from packed()
        return
    reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(
        cast(IO[bytes], _Source(packed())), read_across_frames=True
    )
    try:
        while piece := reader.read(_OUTPUT):
            yield piece
    except zstandard.ZstdError as error:
        raise BinlogError(f"a compressed transaction is garbled: {error}") from None


class _Source:
    """Pieces as a file to read from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = b""

    def read(self, size: int = -1) -> bytes:
        while not self._held:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._held = piece
        piece, self._held = self._held[:size], self._held[size:]
        return piece


def unpack(packed: bytes) -> bytes:
    """MariaDB's compressed bytes.

    Raises:
        BinlogError: garbled or cut short.
    """
    if not packed or packed[0] & 0xF0 != 0x80:
        raise BinlogError("a compressed event is garbled: no compression header")
    width = packed[0] & 0x07
    size = int.from_bytes(packed[1 : 1 + width], "big")
    try:
        found = zlib.decompress(packed[1 + width :], bufsize=size or 1)
    except zlib.error as error:
        raise BinlogError(f"a compressed event is garbled: {error}") from None
    if len(found) != size:
        raise BinlogError(f"a compressed event unpacks to {len(found)} bytes where it says {size}")
    return found
