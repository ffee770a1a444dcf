"""What the allocator does with large blocks."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_MMAP_THRESHOLD = -3
LARGE = 4 << 20
"""Bytes."""


def give_large_blocks_back() -> None:
    """From now on a block of `LARGE` bytes or more goes back to the system when it is freed. glibc by itself soon keeps
    blocks of up to 32 MiB: a daemon that a large row has gone through would never become small again."""
    with suppress(AttributeError, OSError):  # another libc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE)
