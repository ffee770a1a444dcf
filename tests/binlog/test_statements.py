"""What is known of statements from their text: the tables they touch, and whether they commute with rows."""

from __future__ import annotations

import pytest

from mysqlraft.binlog.commuting import commutes
from mysqlraft.binlog.statements import classify


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE t (id INT PRIMARY KEY)",
        "CREATE TABLE IF NOT EXISTS t LIKE other",
        "CREATE OR REPLACE VIEW v AS SELECT 1",
        "DROP FUNCTION f",
        "CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW SET NEW.v = 1",
        "CREATE INDEX i ON t (a)",
        "CREATE FULLTEXT INDEX i ON t (a)",
        "ALTER DATABASE s CHARACTER SET utf8mb4",
        "ALTER TABLE t ADD INDEX i (a, b(10)), ADD KEY (c)",
        "ALTER TABLE t ADD COLUMN more INT NOT NULL DEFAULT 5, ADD INDEX (v)",
        "ALTER TABLE s.t ADD a INT",
        "ALTER TABLE t ADD a DECIMAL(9,2) DEFAULT -1.25 COMMENT 'x'",
        "ALTER TABLE t ADD a VARCHAR(9) CHARACTER SET ascii NOT NULL DEFAULT ''",
        "ALTER TABLE t ADD `unique` INT NULL DEFAULT NULL",
        "ALTER TABLE t ADD e ENUM('a','b') DEFAULT 'a'",
        "ALTER TABLE t ADD b BIT(1) DEFAULT b'0'",
        "ALTER TABLE t COMMENT = 'x', ALGORITHM=INPLACE, LOCK=NONE",
        "ALTER TABLE t ENGINE=InnoDB ROW_FORMAT=DYNAMIC",
        "ALTER TABLE t ALTER COLUMN a SET DEFAULT 7, ALTER b DROP DEFAULT",
        "SET STATEMENT max_statement_time=5 FOR ALTER TABLE t ADD COLUMN a INT",
    ],
)
def test_it_commutes(statement: str) -> None:
    assert commutes(statement, "s")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE OR REPLACE TABLE t (id INT PRIMARY KEY)",
        "CREATE UNIQUE INDEX i ON t (a)",
        "DROP INDEX i ON t",
        "DROP TABLE t",
        "DROP DATABASE s",
        "RENAME TABLE t TO u",
        "TRUNCATE t",
        "ALTER TABLE t RENAME TO u",
        "ALTER TABLE t TRUNCATE PARTITION p",
        "ALTER TABLE t DROP INDEX i",
        "ALTER TABLE t ADD UNIQUE (a)",
        "ALTER TABLE t ADD CONSTRAINT c UNIQUE (a)",
        "ALTER TABLE t ADD a INT, ADD UNIQUE (a)",
        "ALTER TABLE t ADD a INT UNIQUE",
        "ALTER TABLE t ADD a INT NOT NULL",
        "ALTER TABLE t ADD a INT FIRST",
        "ALTER TABLE t ADD a INT AFTER id",
        "ALTER TABLE t ADD (a INT, b INT)",
        "ALTER TABLE t ADD n INT NOT NULL AUTO_INCREMENT UNIQUE",
        "ALTER TABLE t ADD ts TIMESTAMP NULL DEFAULT NULL",
        "ALTER TABLE t ADD ts DATETIME DEFAULT CURRENT_TIMESTAMP",
        "ALTER TABLE t ADD ts DATETIME DEFAULT NOW()",
        "ALTER TABLE t ADD u CHAR(36) DEFAULT (UUID())",
        "ALTER TABLE t ADD a INT AS (id + 1) STORED",
        "ALTER TABLE t ADD a INT DEFAULT 5 + id",
        "ALTER TABLE t MODIFY a BIGINT",
        "ALTER TABLE t CONVERT TO CHARACTER SET utf8mb4",
        "ALTER TABLE t ENGINE=BLACKHOLE",
        "ALTER TABLE t ADD COLUMN a INT /*!50000 UNIQUE */",
        "ALTER TABLE t ADD",
        "ALTER TABLE t",
        "ALTER TABLE t ADD COLUMN a INT DEFAULT",
        "ALTER TABLE t ADD INDEX (a)" + ", ADD INDEX (a)" * 2000,
    ],
)
def test_it_does_not_commute(statement: str) -> None:
    assert not commutes(statement, "s")


@pytest.mark.parametrize(
    ("statement", "tables"),
    [
        ("ALTER TABLE T ADD a INT", [("s", "T")]),
        ("RENAME TABLE t TO o, n TO d.t", [("s", "t"), ("s", "o"), ("s", "n"), ("d", "t")]),
        ("DROP DATABASE d", [("d", None)]),
        ("CREATE TABLE t LIKE d.`u`", [("s", "t"), ("d", "u")]),
        ("CREATE OR REPLACE TABLE d.t (LIKE u)", [("d", "t"), ("s", "u")]),
        ("CREATE TABLE t (a INT, b INT) SELECT a LIKE b FROM u", [("s", "t")]),
        ("ALTER TABLE t EXCHANGE PARTITION p WITH TABLE u", [("s", "t"), ("s", "u")]),
        ("ALTER TABLE t CONVERT PARTITION p TO TABLE d.u", [("s", "t"), ("d", "u")]),
        ("ALTER TABLE t CONVERT TABLE u TO PARTITION p VALUES LESS THAN (9)", [("s", "t"), ("s", "u")]),
        ("ALTER TABLE t CONVERT TO CHARACTER SET utf8mb4", [("s", "t")]),
        ("CREATE PROCEDURE p() SELECT 1", [("s", "PROCEDURE p")]),
        ("CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW SET @a = 1", [("s", "TRIGGER tr"), ("s", "t")]),
        ("CREATE TABLE `ü` (id INT)", [("s", None)]),
        ("DROP TABLE " + ", ".join(f"t{n}" for n in range(3000)), [("s", None)]),
    ],
)
def test_tables(statement: str, tables: list[tuple[str, str | None]]) -> None:
    assert list(dict.fromkeys(classify(statement, "s").tables)) == tables
