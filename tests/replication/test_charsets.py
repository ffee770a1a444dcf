"""Statements in other character sets than UTF-8: bytes end to end, read as their server reads them."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import pytest

from mysqlraft.binlog.dump import DumpConnection
from mysqlraft.binlog.statement_text import statement_text
from mysqlraft.replication import ddl
from mysqlraft.replication.apply_session import open_session, setup
from mysqlraft.replication.entry import PayloadKind, decode
from mysqlraft.replication.filters import TableFilter
from mysqlraft.sandbox.servers import Engine
from tests.harness.pool import LendServers
from tests.replication.harness import SiteUnderTest, settle, wait_for
from tests.replication.recorder import connection
from tests.replication.test_apply import cluster, same_everywhere

pytestmark = pytest.mark.timeout(300)

# A client's character set, and text whose characters end in bytes that look like \ or ` or a quotation mark.
TEXTS = {
    "latin1": "café€",
    "gbk": "中誠甛",
    "sjis": "ソ表能",
    "cp932": "ソ髙表",
    "big5": "功許蓋",
    "euckr": "한글",
    "ujis": "表ソ",
    "koi8r": "привет",
    "latin2": "žluť",
}
ONLY_MYSQL = {"gb18030": "中𠀀誠"}
CODECS = {"koi8r": "koi8_r", "ujis": "euc_jp", "euckr": "euc_kr", "sjis": "shift_jis", "latin1": "cp1252"}


def execute(site: SiteUnderTest, charset: str, *statements: str | bytes) -> None:
    """Runs statements in a character set: the bytes as they are, names of objects included."""
    with closing(site.server.connect()) as client:
        client.query(f"SET NAMES {charset}")
        for statement in statements:
            text = statement.encode(CODECS.get(charset, charset)) if isinstance(statement, str) else statement
            client.query(text)


def test_tables_and_defaults_in_other_character_sets(servers: LendServers, engine: Engine) -> None:
    with cluster(servers(2)) as sites:
        one, two = sites
        texts = TEXTS | (ONLY_MYSQL if engine == "mysql" else {})
        for charset, text in texts.items():
            execute(
                one,
                charset,
                f"CREATE TABLE s.`{charset} {text}` (id INT PRIMARY KEY, `{text}` VARCHAR(9) DEFAULT '{text}')",
                f"ALTER TABLE s.`{charset} {text}` COMMENT '{text}''`'",
                f"INSERT INTO s.`{charset} {text}` (id) VALUES (1)",
                f"CREATE VIEW s.`view {charset}` AS SELECT `{text}` FROM s.`{charset} {text}`",
                f"CREATE TRIGGER s.`{text} {charset}` BEFORE INSERT ON s.`{charset} {text}` FOR EACH ROW"
                f" SET @a = '{text}'",
                f"CREATE TABLE s.`gone {text}` (id INT PRIMARY KEY)",
                f"DROP TABLE s.`gone {text}`",
            )
        settle(sites)
        for charset, text in texts.items():
            table = f"s.`{charset} {text}`"
            assert two.execute(f"SELECT `{text}` FROM {table}") == [(text,)]
            for kind, name in (("TABLE", table), ("VIEW", f"s.`view {charset}`"), ("TRIGGER", f"s.`{text} {charset}`")):
                shown = [site.execute(f"SHOW CREATE {kind} {name}")[0][:6] for site in sites]
                assert shown[0] == shown[1]
        assert not two.execute("SHOW TABLES FROM s LIKE 'gone%'")
        logged = [decode(one.log.entries[index - 1].payload).ddl for index in one.log.of_kind(PayloadKind.DDL)]
        assert any(each is not None and each.statement.startswith(b"CREATE TABLE s.`latin1 caf\xe9") for each in logged)
        print(f"{engine}: statements in {', '.join(texts)}")


def test_bytes_that_are_no_text(servers: LendServers) -> None:
    """In comments anything goes; so does a literal that is said to be of another character set."""
    with cluster(servers(2)) as sites:
        one, two = sites
        execute(
            one,
            "gbk",
            b"CREATE TABLE /* \x81\xff \xfe\x60 */ s.made (id INT PRIMARY KEY, b BLOB)",
            b"CREATE VIEW s.v AS SELECT _binary '\x81\xff' AS b /* \xff */",
        )
        settle(sites)
        assert two.execute("SELECT b FROM s.v") == [(b"\x81\xff",)]
        assert two.execute("SHOW TABLES FROM s LIKE 'made'")


def test_a_name_that_is_a_statement_in_another_character_set(servers: LendServers) -> None:
    """A tenant's schema, quoted in one character set and read in another, must not run anything."""
    name = "tenant 中`;drop database hr#"
    twins = [name, name.encode("gbk").decode("latin1"), "tenant \u0438`;drop database hr#"]
    with cluster(servers(2)) as sites:
        one, two = sites
        one.execute("CREATE DATABASE hr", "CREATE TABLE hr.t (id INT PRIMARY KEY)")
        for number, twin in enumerate(twins):
            quoted = "`" + twin.replace("`", "``") + "`"
            one.execute(
                f"CREATE DATABASE {quoted}", f"USE {quoted}", "SET NAMES gbk", f"CREATE TABLE t{number} (id INT)"
            )
            one.execute(f"ALTER TABLE {quoted}.t{number} ADD PRIMARY KEY (id)")
        settle(sites)
        assert two.execute("SHOW TABLES FROM hr") == [("t",)]
        for number, twin in enumerate(twins):
            quoted = "`" + twin.replace("`", "``") + "`"
            assert two.execute(f"SHOW TABLES FROM {quoted}") == [(f"t{number}",)]


def test_a_statement_in_part_of_a_list(servers: LendServers) -> None:
    """What is left of a DROP is written anew, and read as what it was."""
    replicated = TableFilter(["s.*", "settle.*"], ["s.private*"])
    with cluster(servers(2), replicated=replicated, capture={"replicated": replicated}) as sites:
        one, two = sites
        execute(one, "latin1", "CREATE TABLE s.`café` (id INT PRIMARY KEY)", "CREATE TABLE s.`private é` (id INT)")
        execute(one, "latin1", "DROP TABLE s.`café`, s.`private é`")
        settle(sites)
        assert not two.execute("SHOW TABLES FROM s LIKE 'c%'")
        same_everywhere(sites, "s.t")


def test_whether_it_has_run_is_told_in_its_character_set(servers: LendServers) -> None:
    with cluster(servers(2)) as sites:
        one, two = sites
        execute(one, "sjis", "CREATE TABLE s.`表` (id INT PRIMARY KEY)")
        wait_for(lambda: bool(one.log.of_kind(PayloadKind.DDL)), 30, one)
        settle(sites)
        (index,) = one.log.of_kind(PayloadKind.DDL)
        statement = decode(one.log.entries[index - 1].payload).ddl
        assert statement is not None
        session = open_session(partial(connection, two.server))
        intent = ddl.Intent(index, *ddl.binlog_end(session))
        session.run(["DROP TABLE s.`表`".encode()])
        assert not ddl.has_run(session, statement, intent, lambda: DumpConnection(two.arguments(), 77_002))
        ddl.run(session, statement)
        setup(session)
        assert ddl.has_run(session, statement, intent, lambda: DumpConnection(two.arguments(), 77_002))
        session.close()


class _Nothing:
    """A MySQL server that finds no text."""

    def charset(self, collation: int) -> str:
        return {28: "gbk", 8: "latin1"}[collation]

    def text(self, value: bytes, charset: str) -> str | None:
        return None


def test_what_cannot_be_read_hides_no_quotation_mark() -> None:
    found = statement_text(b"CREATE TABLE `a\xfe\x60b` /* \xff */ (`c\\`)", 28, _Nothing())  # type: ignore[arg-type]
    assert found == "CREATE TABLE `a\ufffdb` /* \ufffd */ (`c\\`)"
    assert statement_text(b"DROP TABLE `\xe9`", 8, _Nothing()) == "DROP TABLE `\ufffd`"  # type: ignore[arg-type]
