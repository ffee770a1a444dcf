"""What is known of statements from their text: the tables they touch, and whether they commute with rows."""

from __future__ import annotations

import pytest

from mysqlraft.binlog import scheduled_events
from mysqlraft.binlog.commuting import commutes
from mysqlraft.binlog.errors import BinlogError
from mysqlraft.binlog.moved_tables import moved
from mysqlraft.binlog.repeating import ONLY_MAKES, repetition
from mysqlraft.binlog.statements import StatementKind, classify


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE t (id INT PRIMARY KEY)",
        "CREATE TABLE IF NOT EXISTS t LIKE other",
        "CREATE OR REPLACE VIEW v AS SELECT 1",
        "DROP FUNCTION f",
        "CREATE EVENT e ON SCHEDULE EVERY 1 DAY DO DELETE FROM t",
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
        "alter table `t` add `created_at` timestamp null, add `updated_at` timestamp(3) null default null",
        "ALTER TABLE t ADD INDEX (a)" + ", ADD INDEX (a)" * 2000,
        "ALTER TABLE t COMMENT = 'x', ALGORITHM=INPLACE, LOCK=NONE",
        "ALTER TABLE t ENGINE=InnoDB ROW_FORMAT=DYNAMIC",
        "ALTER TABLE t ALTER COLUMN a SET DEFAULT 7, ALTER b DROP DEFAULT",
        "ALTER TABLE t ADD (a INT, b DECIMAL(9, 2) NOT NULL DEFAULT 1e-5), ADD c VARCHAR(9) DEFAULT 'a' 'b'",
        "ALTER TABLE t ADD COLUMN a VARCHAR(9) DEFAULT _utf8mb4'a' \"b\" 'c' COMMENT 'x', ADD b DOUBLE DEFAULT -.5E+3",
        "/*!40000 ALTER TABLE `t` DISABLE KEYS */",
        "ALTER TABLE t ENABLE KEYS",
        "ALTER TABLE t FORCE",
        "ALTER TABLE t FORCE, ALGORITHM=INPLACE",
        "ALTER TABLE t ORDER BY a, b DESC",
        "ALTER TABLE t ANALYZE PARTITION p, q",
        "ALTER TABLE t OPTIMIZE PARTITION ALL",
        "ALTER TABLE t RENAME INDEX i TO j, ALTER INDEX k INVISIBLE",
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
        "ALTER TABLE t ADD (a INT, b INT NOT NULL)",
        "ALTER TABLE t ADD (a INT, UNIQUE (a))",
        "ALTER TABLE t ADD (a INT",
        "ALTER TABLE t ORDER BY a, DROP COLUMN b",
        "ALTER TABLE t ALTER INDEX i",
        "ALTER TABLE t REORGANIZE PARTITION p INTO (PARTITION q VALUES LESS THAN (9))",
        "ALTER TABLE t ADD n INT NOT NULL AUTO_INCREMENT UNIQUE",
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
        "ALTER TABLE t ADD INDEX (a)" + ", ADD INDEX (a)" * 2000 + ", DROP COLUMN b",
        "ALTER TABLE t ADD a TIMESTAMP DEFAULT NULL",
        "ALTER TABLE t ADD a TIMESTAMP NULL DEFAULT '2024-01-01 00:00:00'",
        "ALTER TABLE t ADD a TIMESTAMP NULL DEFAULT NULL ON UPDATE CURRENT_TIMESTAMP",
        "ALTER TABLE t ADD a TIMESTAMP NULL NOT NULL DEFAULT NULL",
    ],
)
def test_it_does_not_commute(statement: str) -> None:
    assert not commutes(statement, "s")


@pytest.mark.parametrize(
    ("statement", "tables"),
    [
        ("ALTER TABLE T ADD a INT", [("s", "T")]),
        ("RENAME TABLE t TO o, n TO d.t", [("s", "t"), ("s", "o"), ("s", "n"), ("d", "t")]),
        ("ALTER TABLE wait ADD a INT", [("s", "wait")]),
        ("DROP TABLE nowait, t", [("s", "nowait"), ("s", "t")]),
        ("DROP DATABASE d", [("d", None)]),
        ("CREATE TABLE t LIKE d.`u`", [("s", "t"), ("d", "u")]),
        ("CREATE OR REPLACE TABLE d.t (LIKE u)", [("d", "t"), ("s", "u")]),
        ("CREATE TABLE t (a INT, b INT) SELECT a LIKE b FROM u", [("s", "t")]),
        ("ALTER TABLE t EXCHANGE PARTITION p WITH TABLE u", [("s", "t"), ("s", "u")]),
        ("ALTER TABLE t CONVERT PARTITION p TO TABLE d.u", [("s", "t"), ("d", "u")]),
        ("ALTER TABLE t CONVERT TABLE u TO PARTITION p VALUES LESS THAN (9)", [("s", "t"), ("s", "u")]),
        ("ALTER TABLE t CONVERT TO CHARACTER SET utf8mb4", [("s", "t")]),
        ("CREATE PROCEDURE p() SELECT 1", [("s", "PROCEDURE p")]),
        ("CREATE LIBRARY l LANGUAGE JAVASCRIPT AS $$ function f() {} $$", [("s", "LIBRARY l")]),
        ("DROP LIBRARY IF EXISTS d.l", [("d", "LIBRARY l")]),
        ("CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW SET @a = 1", [("s", "TRIGGER tr"), ("s", "t")]),
        ("ALTER DEFINER=a@b EVENT e ON SCHEDULE EVERY 1 DAY RENAME TO d.f", [("s", "EVENT e"), ("d", "EVENT f")]),
        ("ALTER DEFINER=event@table EVENT e COMMENT 'x'", [("s", "EVENT e")]),
        ("CREATE DEFINER = CURRENT_USER() TRIGGER tr BEFORE INSERT ON t", [("s", "TRIGGER tr"), ("s", "t")]),
        ("CREATE TABLE `ü` (id INT)", [("s", None)]),
        ("DROP TABLE " + ", ".join(f"t{n}" for n in range(3000)), [("s", f"t{n}") for n in range(3000)]),
    ],
)
def test_tables(statement: str, tables: list[tuple[str, str | None]]) -> None:
    assert list(dict.fromkeys(classify(statement, "s").tables)) == tables


def test_a_trigger_without_a_default_schema() -> None:
    found = classify("CREATE TRIGGER d.tr BEFORE INSERT ON t FOR EACH ROW SET @a = 1", "")
    assert found.tables == (("d", "TRIGGER tr"), ("d", "t"))


@pytest.mark.parametrize("comment", ["--\n", "--\r\n", "--\x01x\n", "-- x\n--\n", "#\n", "/**/", "/*/ x */"])
def test_a_comment_hides_nothing(comment: str) -> None:
    found = classify(f"{comment}ALTER {comment}TABLE {comment}t {comment}ADD a INT", "s")
    assert (found.kind, found.tables) == (StatementKind.SCHEMA, (("s", "t"),))
    assert classify(comment.strip(), "s").kind is StatementKind.OTHER


@pytest.mark.parametrize("statement", ["- x", "FOO BAR", "CREATE CATALOG c", "/*M!100000 x */ CREATE TABLE t (id INT)"])
def test_what_it_changes_cannot_be_told(statement: str) -> None:
    assert classify(statement, "s").kind is StatementKind.UNKNOWN


@pytest.mark.parametrize(
    "statement",
    ["GRANT ALL ON *.* TO a", "CREATE USER a", "RENAME USER a TO b", "CREATE SPATIAL REFERENCE SYSTEM 7 NAME 'x'"],
)
def test_it_changes_no_schema(statement: str) -> None:
    assert classify(statement, "s").kind is StatementKind.OTHER


@pytest.mark.parametrize(
    ("statement", "elsewhere"),
    [
        (
            "CREATE DEFINER=`a`@`b` EVENT e ON SCHEDULE EVERY 1 DAY DO SELECT 1",
            "CREATE DEFINER=`a`@`b` EVENT e ON SCHEDULE EVERY 1 DAY DISABLE ON SLAVE DO SELECT 1",
        ),
        (
            "CREATE DEFINER=`a`@`b` EVENT IF NOT EXISTS do ON SCHEDULE EVERY (SELECT 1) DAY ON COMPLETION PRESERVE"
            " ENABLE COMMENT 'ENABLE' DO CALL enable()",
            "CREATE DEFINER=`a`@`b` EVENT IF NOT EXISTS do ON SCHEDULE EVERY (SELECT 1) DAY ON COMPLETION PRESERVE"
            " DISABLE ON SLAVE COMMENT 'ENABLE' DO CALL enable()",
        ),
        (
            "CREATE DEFINER=`a`@`b` EVENT s . `enable` ON SCHEDULE AT NOW() COMMENT 'x' DO DO 1",
            "CREATE DEFINER=`a`@`b` EVENT s . `enable` ON SCHEDULE AT NOW() DISABLE ON SLAVE COMMENT 'x' DO DO 1",
        ),
        (
            "CREATE DEFINER=`a`@`b` EVENT e ON SCHEDULE EVERY 1 DAY DISABLE ON REPLICA DO BEGIN END",
            "CREATE DEFINER=`a`@`b` EVENT e ON SCHEDULE EVERY 1 DAY DISABLE ON SLAVE DO BEGIN END",
        ),
        ("/* x */ ALTER EVENT e ENABLE", "/* x */ ALTER DEFINER=`o``o`@`%` EVENT e DISABLE ON SLAVE"),
        ("ALTER EVENT enable RENAME TO f", "ALTER DEFINER=`o``o`@`%` EVENT enable RENAME TO f"),
        ("ALTER DEFINER=a@b EVENT e DISABLE DO DO 2", "ALTER DEFINER=a@b EVENT e DISABLE ON SLAVE DO DO 2"),
        ("ALTER DEFINER=a@b EVENT e COMMENT 'x'", "ALTER DEFINER=a@b EVENT e COMMENT 'x'"),
        ("DROP EVENT IF EXISTS`h`.`o`", "DROP EVENT IF EXISTS`h`.`o`"),
    ],
)
def test_events_elsewhere(statement: str, elsewhere: str) -> None:
    assert scheduled_events.elsewhere(statement, ("o`o", "%")) == elsewhere


@pytest.mark.parametrize(
    ("statement", "makes"),
    [
        ("CREATE TABLE IF NOT EXISTS t (id INT)", True),
        ("CREATE DATABASE IF NOT EXISTS d", True),
        ("CREATE DEFINER=a@b TRIGGER IF NOT EXISTS tr BEFORE INSERT ON t FOR EACH ROW SET @a = 1", True),
        ("CREATE INDEX IF NOT EXISTS i ON t (a)", True),
        ("ALTER TABLE t ADD COLUMN IF NOT EXISTS a INT, ADD INDEX IF NOT EXISTS (a, b)", True),
        ("ALTER TABLE t ADD COLUMN IF NOT EXISTS a INT, DROP COLUMN IF EXISTS b", False),
        ("CREATE OR REPLACE VIEW v AS SELECT 1", False),
        ("DROP TABLE IF EXISTS t, u", False),
        ("DROP DATABASE IF EXISTS d", False),
    ],
)
def test_statements_that_may_run_at_two_sites_at_once(statement: str, makes: bool) -> None:
    number = repetition(statement, "s", {"sql_mode": 1, "timestamp": "1.0", "auto_increment_offset": 1})
    assert number
    assert bool(number & ONLY_MAKES) is makes
    assert number == repetition(statement, "s", {"sql_mode": 1, "timestamp": "2.0", "auto_increment_offset": 2})


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE t (id INT)",
        "CREATE OR REPLACE TABLE t (id INT)",
        "DROP TABLE t",
        "ALTER TABLE t ADD COLUMN IF NOT EXISTS a INT, ADD b INT",
        "ALTER TABLE IF EXISTS t ADD b INT",
        "TRUNCATE t",
        "RENAME TABLE IF EXISTS t TO u",
        "",
    ],
)
def test_statements_that_may_not(statement: str) -> None:
    assert repetition(statement, "s", {}) == 0


def test_what_is_the_same_statement() -> None:
    made = "CREATE TABLE IF NOT EXISTS t (id INT)"
    assert repetition(made, "s", {}) != repetition(made, "other", {})
    assert repetition(made, "s", {"sql_mode": 1}) != repetition(made, "s", {"sql_mode": 2})
    assert repetition("DROP TABLE IF EXISTS t", "s", {}) == repetition("DROP TABLE IF EXISTS `u`, t", "s", {"a": 1})
    assert repetition("DROP TABLE IF EXISTS t", "s", {}) == repetition("DROP VIEW IF EXISTS t", "s", {})
    assert repetition("DROP TABLE IF EXISTS t", "s", {}) != repetition("DROP DATABASE IF EXISTS t", "s", {})


def test_an_event_in_another_character_set() -> None:
    """A character that ends in a backslash or a backtick hides no word, and no byte of it changes."""
    characters = [bytes((one,)) for one in b"ALTER EVENT `a"] + [b"\x83\x5c", b"\xfe\x60"]
    characters += [bytes((one,)) for one in b"` ENABLE COMMENT '"] + [b"\x95\x5c", b"'"]
    found = scheduled_events.elsewhere_in_bytes(characters, ("o", "%"))
    assert found == b"ALTER DEFINER=`o`@`%` EVENT `a\x83\x5c\xfe\x60` DISABLE ON SLAVE COMMENT '\x95\x5c'"
    with pytest.raises(BinlogError, match="cannot be put"):
        scheduled_events.elsewhere_in_bytes(characters, ("ö", "%"))


@pytest.mark.parametrize(
    ("statement", "tables"),
    [
        ("RENAME TABLE t TO u", [("s", "t")]),
        ("RENAME TABLES t TO gone, new TO t", [("s", "t"), ("s", "new")]),
        ("RENAME TABLE A.`t` TO x, u TO a.t, x TO s.u", [("a", "t"), ("s", "u")]),
        ("RENAME TABLE t TO x, x TO t", []),
        ("RENAME TABLE IF EXISTS t NOWAIT TO u", [("s", "t")]),
        ("RENAME TABLE `t\xfc` TO u", [("s", None)]),
        ("ALTER TABLE t ADD c INT, RENAME TO u", [("s", "t")]),
        ("ALTER TABLE t RENAME AS s.t", []),
        ("ALTER TABLE t RENAME COLUMN a TO b, RENAME INDEX i TO j, RENAME KEY k TO l", []),
        ("ALTER ONLINE TABLE IF EXISTS t RENAME u", [("s", "t")]),
        ("ALTER TABLE t EXCHANGE PARTITION p WITH TABLE x.u WITHOUT VALIDATION", [("s", "t"), ("x", "u")]),
        ("ALTER TABLE t CONVERT PARTITION p TO TABLE u", [("s", "t")]),
        ("ALTER TABLE t CONVERT TABLE u TO PARTITION p VALUES LESS THAN (9)", [("s", "t"), ("s", "u")]),
        ("ALTER TABLE t CONVERT TO CHARACTER SET utf8mb4", []),
        ("ALTER TABLE t TRUNCATE PARTITION p", []),
        ("DROP TABLE t", []),
    ],
)
def test_tables_whose_rows_go_to_another_name(statement: str, tables: list[tuple[str, str | None]]) -> None:
    assert moved(statement, "s") == frozenset(tables)
