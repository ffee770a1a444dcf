"""The application of the demo and of the tests: its tables, and the transactions it makes.

Everything is drawn from small key spaces that all sites share, so the same accounts, e-mail addresses and orders are
written at several sites at once: inserted twice, renamed while deleted elsewhere, given away to another primary key.
A transaction is planned from a random generator alone, never from what the tables hold, so a seed fixes what each
writer tries.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SCHEMA = "shop"

TABLES: dict[str, str] = {
    "accounts": """
    CREATE TABLE shop.accounts (
        id BIGINT NOT NULL PRIMARY KEY,
        email VARCHAR(80) CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci NOT NULL,
        balance DECIMAL(14,2) NOT NULL,
        version INT UNSIGNED NOT NULL,
        note TEXT NULL,
        UNIQUE KEY email (email)
    ) ENGINE=InnoDB
    """,
    "orders": """
    CREATE TABLE shop.orders (
        region VARCHAR(24) CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci NOT NULL,
        code VARCHAR(24) CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci NOT NULL,
        account BIGINT NOT NULL,
        amount DECIMAL(12,3) NULL,
        state ENUM('new','paid','sent','') NOT NULL,
        flags SET('gift','fragile','express') NOT NULL,
        placed DATETIME(6) NULL,
        PRIMARY KEY (region, code),
        KEY account (account)
    ) ENGINE=InnoDB
    """,
    "wide": """
    CREATE TABLE shop.wide (
        id INT UNSIGNED NOT NULL PRIMARY KEY,
        tiny TINYINT NULL, small SMALLINT UNSIGNED NULL, medium MEDIUMINT NULL, big BIGINT UNSIGNED NULL,
        exact DECIMAL(30,10) NULL, single FLOAT NULL, twofold DOUBLE NULL, bits BIT(17) NULL,
        born DATE NULL, clock TIME(3) NULL, stamp TIMESTAMP(6) NULL DEFAULT NULL,
        moment DATETIME(2) NULL, vintage YEAR NULL,
        fixed CHAR(12) CHARACTER SET latin1 NULL, padded BINARY(6) NULL, bytes VARBINARY(300) NULL,
        words MEDIUMTEXT CHARACTER SET utf8mb4 NULL, lump MEDIUMBLOB NULL, doc JSON NULL,
        code BINARY(8) NOT NULL, doubled BIGINT UNSIGNED AS (small * 2) STORED,
        UNIQUE KEY code (code)
    ) ENGINE=InnoDB
    """,
    "log": """
    CREATE TABLE shop.log (
        id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
        site INT NOT NULL,
        message VARCHAR(200) NOT NULL,
        at DATETIME(6) NOT NULL
    ) ENGINE=InnoDB
    """,
    # One row for each committed transaction: what exactly-once is counted by.
    "writes": """
    CREATE TABLE shop.writes (
        site INT NOT NULL,
        writer INT NOT NULL,
        seq INT NOT NULL,
        what VARCHAR(40) NOT NULL,
        PRIMARY KEY (site, writer, seq)
    ) ENGINE=InnoDB
    """,
}

_REGIONS = ("Paris", "PARIS", "paris", "Köln", "koln", "São Paulo", "sao paulo", "Łódź", "Århus", "東京")
_STATES = ("new", "paid", "sent", "")
_FLAGS = ("", "gift", "gift,express", "gift,fragile,express")

Statement = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Plan:
    """One transaction: a name for people, and its statements."""

    name: str
    statements: list[Statement]


class Planner:
    """Draws transactions. `keys` is how many accounts there may be: the fewer, the more conflicts."""

    def __init__(self, rng: random.Random, site: int, keys: int) -> None:
        self._rng = rng
        self._site = site
        self._keys = keys
        self._kinds: list[tuple[Callable[[], list[Statement]], str]] = []
        self._weights: list[int] = []
        for weight, name, kind in (
            (14, "open account", self._open),
            (22, "change balance", self._balance),
            (10, "change e-mail", self._email),
            (8, "change primary key", self._rename),
            (6, "close account", self._close),
            (6, "delete and re-insert", self._reopen),
            (12, "place order", self._order),
            (6, "replace order", self._replace_order),
            (4, "cancel orders", self._cancel),
            (8, "wide row", self._wide),
            (8, "log line", self._log),
            (8, "transfer", self._transfer),
            (2, "many rows", self._many),
        ):
            self._kinds.append((kind, name))
            self._weights.append(weight)

    def plan(self) -> Plan:
        kind, name = self._rng.choices(self._kinds, self._weights)[0]
        return Plan(name, kind())

    def _account(self) -> int:
        # A third of the traffic goes to a few hot accounts.
        return self._rng.randrange(1, 9) if self._rng.random() < 0.3 else self._rng.randrange(1, self._keys + 1)

    def _address(self) -> str:
        # Letter case and accents differ, the unique key does not tell them apart.
        name = self._rng.choice(("josé", "jose", "JOSÉ", "Zoë", "zoe", "ada"))
        return f"{name}.{self._rng.randrange(self._keys)}@example.com"

    def _open(self) -> list[Statement]:
        return [self._insert_account(self._account())]

    def _insert_account(self, key: int) -> Statement:
        rng = self._rng
        note = None if rng.random() < 0.3 else f"opened at site {self._site} " + "x" * rng.randrange(60)
        return (
            "INSERT INTO shop.accounts (id, email, balance, version, note) VALUES (%s, %s, %s, 1, %s)",
            (key, self._address(), rng.randrange(100_000) / 100, note),
        )

    def _balance(self) -> list[Statement]:
        return [self._add(self._account(), self._rng.randrange(-500, 501))]

    def _add(self, key: int, amount: int) -> Statement:
        return ("UPDATE shop.accounts SET balance = balance + %s, version = version + 1 WHERE id = %s", (amount, key))

    def _email(self) -> list[Statement]:
        return [
            (
                "UPDATE shop.accounts SET email = %s, version = version + 1 WHERE id = %s",
                (self._address(), self._account()),
            )
        ]

    def _rename(self) -> list[Statement]:
        return [("UPDATE shop.accounts SET id = %s WHERE id = %s", (self._account(), self._account()))]

    def _close(self) -> list[Statement]:
        return [("DELETE FROM shop.accounts WHERE id = %s", (self._account(),))]

    def _reopen(self) -> list[Statement]:
        key = self._account()
        return [("DELETE FROM shop.accounts WHERE id = %s", (key,)), self._insert_account(key)]

    def _order_values(self) -> tuple[Any, ...]:
        rng = self._rng
        return (
            rng.choice(_REGIONS),
            f"{rng.choice('abAB')}-{rng.randrange(self._keys)}",
            self._account(),
            None if rng.random() < 0.1 else rng.randrange(10_000_000) / 1000,
            rng.choice(_STATES),
            rng.choice(_FLAGS),
            f"20{rng.randrange(10, 30)}-02-{rng.randrange(10, 29)} 12:00:00.{rng.randrange(10**6):06d}",
        )

    def _order(self) -> list[Statement]:
        return [
            (
                "INSERT INTO shop.orders VALUES (%s, %s, %s, %s, %s, %s, %s)"
                " ON DUPLICATE KEY UPDATE amount = VALUES(amount), state = VALUES(state), region = VALUES(region)",
                self._order_values(),
            )
        ]

    def _replace_order(self) -> list[Statement]:
        return [("REPLACE INTO shop.orders VALUES (%s, %s, %s, %s, %s, %s, %s)", self._order_values())]

    def _cancel(self) -> list[Statement]:
        return [("DELETE FROM shop.orders WHERE account = %s", (self._account(),))]

    def _wide(self) -> list[Statement]:
        rng = self._rng

        def maybe(value: Any) -> Any:
            return None if rng.random() < 0.15 else value

        values = (
            rng.randrange(1, self._keys + 1),
            maybe(rng.randrange(-128, 128)),
            maybe(rng.choice((0, 65535, rng.randrange(65536)))),
            maybe(rng.randrange(-(2**23), 2**23)),
            maybe(rng.choice((0, 2**64 - 1, rng.randrange(2**64)))),
            maybe(f"{rng.randrange(-(10**15), 10**15)}.{rng.randrange(10**10):010d}"),
            maybe(rng.uniform(-1e6, 1e6)),
            maybe(rng.uniform(-1e300, 1e300)),
            maybe(rng.randrange(2**17)),
            maybe(f"19{rng.randrange(10, 100)}-12-31"),
            maybe(f"-{rng.randrange(100, 800)}:59:59.{rng.randrange(1000):03d}"),
            maybe(f"2024-02-29 23:59:59.{rng.randrange(10**6):06d}"),
            maybe("9999-12-31 23:59:59.99"),
            maybe(rng.choice((1901, 2155, 2000))),
            maybe("naïve " + "z" * rng.randrange(6)),
            maybe(bytes((rng.randrange(256), 0, 0))),
            maybe(rng.randbytes(rng.randrange(300))),
            maybe("語" * rng.randrange(200)),
            maybe(rng.randbytes(rng.choice((0, 10, 3000)))),
            maybe(f'{{"n": [1, 2.5, null, "é"], "site": {self._site}}}'),
            rng.randrange(self._keys).to_bytes(8, "big"),
        )
        columns = (
            "id, tiny, small, medium, big, exact, single, twofold, bits, born, clock, stamp, moment, vintage,"
            " fixed, padded, bytes, words, lump, doc, code"
        )
        return [(f"REPLACE INTO shop.wide ({columns}) VALUES ({', '.join(['%s'] * len(values))})", values)]

    def _log(self) -> list[Statement]:
        return [self._line("nothing much")]

    def _line(self, message: str) -> Statement:
        return ("INSERT INTO shop.log (site, message, at) VALUES (%s, %s, NOW(6))", (self._site, message))

    def _transfer(self) -> list[Statement]:
        # In key order, as an application does that does not want to deadlock with itself.
        first, second = sorted((self._account(), self._account()))
        amount = self._rng.randrange(1, 100)
        return [
            self._add(first, -amount),
            self._add(second, amount),
            *self._order(),
            self._line(f"{first} -> {second}"),
        ]

    def _many(self) -> list[Statement]:
        low = self._rng.randrange(self._keys)
        return [
            ("UPDATE shop.accounts SET version = version + 1 WHERE id BETWEEN %s AND %s", (low, low + 40)),
            ("UPDATE shop.orders SET amount = amount + 1 WHERE account BETWEEN %s AND %s", (low, low + 10)),
        ]
