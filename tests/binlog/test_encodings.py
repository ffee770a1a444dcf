"""The codec of every collation of a server."""

from __future__ import annotations

from mysqlraft.binlog.encodings import encoding_of
from mysqlraft.sandbox.servers import Server
from tests.binlog.tap import run

UNICODE = {
    "utf8mb3": "utf-8",
    "utf8mb4": "utf-8",
    "ucs2": "utf-16-be",
    "utf16": "utf-16-be",
    "utf16le": "utf-16-le",
    "utf32": "utf-32-be",
}


def test_every_collation(server: Server) -> None:
    with server.connect() as connection:
        if server.engine == "mysql":
            asked = "SELECT id, collation_name, character_set_name FROM information_schema.collations"
        else:
            asked = (
                "SELECT id, full_collation_name, character_set_name"
                " FROM information_schema.collation_character_set_applicability"
            )
        collations = run(connection, asked)
        defaults: dict[str, int] = {
            str(charset): int(number)
            for charset, number in run(
                connection,
                "SELECT character_set_name, id FROM information_schema.collations WHERE is_default = 'Yes'",
            )
        }
        assert len(collations) > 250
        for number, name, charset in collations:
            if charset in UNICODE:
                assert encoding_of(number).replace("utf8", "utf-8") == UNICODE[charset], name
            else:
                assert codec(number) == codec(defaults[charset]), name
        # It reads what the server writes.
        for charset, encoding in UNICODE.items():
            ((text,),) = run(connection, f"SELECT HEX(CONVERT('é漢' USING {charset}))")
            assert bytes.fromhex(str(text)).decode(encoding) == "é漢"


def codec(collation: int) -> str:
    try:
        return encoding_of(collation)
    except LookupError:
        return "none"
