"""Python's codec for the character set of a collation, by the collation's number alone.

PyMySQL knows the character sets that a client can have, and of those not the newer collations: MySQL's for single
languages, MariaDB's without padding and by Unicode 14, which is the default from MariaDB 11.6 on. The numbers are those
of information_schema.COLLATIONS.
"""

from __future__ import annotations

import codecs

import pymysql.charset

_NO_PAD = 1024
"""MariaDB: added to the number of the collation that is the same with padding."""
_BLOCKS = {
    "utf-8": (range(255, 324), range(576, 640), range(2048, 2560)),
    "utf-16-be": (  # UCS-2, UTF-16
        *(range(n, n + 1) for n in (35, 54, 55, 90)),
        range(101, 160),
        range(640, 736),
        range(2560, 3072),
    ),
    "utf-16-le": (range(56, 57), range(62, 63)),
    "utf-32-be": (range(60, 62), range(160, 192), range(736, 768), range(3072, 3328)),
}


def encoding_of(collation: int) -> str:
    """The name of the codec.

    Raises:
        LookupError: Python has none for this character set, or there is no such collation.
    """
    if _NO_PAD <= collation < 2 * _NO_PAD:
        collation -= _NO_PAD
    for encoding, blocks in _BLOCKS.items():
        if any(collation in block for block in blocks):
            return encoding
    encoding = str(pymysql.charset.charset_by_id(collation).encoding)
    return codecs.lookup(encoding).name
