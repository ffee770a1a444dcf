"""From the formats before to those of today: payloads, state, schema, and a whole site."""

from __future__ import annotations

import json
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import pytest

from mysqlraft.mysql import schema
from mysqlraft.mysql.connection import Session
from mysqlraft.mysql.schema import SchemaError, ensure_schema
from mysqlraft.raft import Entry, EntryKind, HardState, LevelDBStore, Write
from mysqlraft.replication.apply import Applier
from mysqlraft.replication.capture import CaptureState, position_now
from mysqlraft.replication.entry import VERSION, Ddl, Flavour, Payload, PayloadError, PayloadKind, Position, decode
from mysqlraft.replication.state import FORMAT, LogEntry, ReplicationState, StateError
from mysqlraft.sandbox.servers import ENGINES, Engine, Server
from tests.replication.capture_rig import capturing, run
from tests.replication.harness import LoggedEntry, SharedLog, SiteLink, wait_for

SCHEMA_1 = (
    "CREATE DATABASE mysqlraft DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    "CREATE TABLE mysqlraft.version (version INT UNSIGNED NOT NULL PRIMARY KEY) ENGINE = InnoDB",
    "CREATE TABLE mysqlraft.progress (id TINYINT UNSIGNED NOT NULL PRIMARY KEY, applied BIGINT UNSIGNED NOT NULL,"
    " state LONGBLOB NOT NULL, intent VARBINARY(1024) NULL"
    ") ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    "CREATE TABLE mysqlraft.beginning (id TINYINT UNSIGNED NOT NULL PRIMARY KEY, base BIGINT UNSIGNED NOT NULL,"
    " position LONGBLOB NOT NULL) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    "CREATE TABLE mysqlraft.conflicts (log_index BIGINT UNSIGNED NOT NULL, unit_number INT UNSIGNED NOT NULL,"
    " number INT UNSIGNED NOT NULL, schema_name VARCHAR(64) NOT NULL, table_name VARCHAR(64) NOT NULL,"
    " type VARCHAR(40) NOT NULL, row_key TEXT NOT NULL, origin TINYINT UNSIGNED NOT NULL,"
    " committed_at DATETIME(6) NOT NULL, other_origin TINYINT UNSIGNED NOT NULL, other_index BIGINT UNSIGNED NOT NULL,"
    " other_committed_at DATETIME(6) NULL, image LONGTEXT NULL, other_image LONGTEXT NULL,"
    " resolution VARCHAR(200) NOT NULL, PRIMARY KEY (log_index, unit_number, number)"
    ") ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    "INSERT INTO mysqlraft.version VALUES (1)",
)
"""The schema as version 1 made it."""
CONFLICT = (
    "INSERT INTO mysqlraft.conflicts VALUES (3, 0, 0, 's', 't', 'insert_exists', '{}', 2, '2024-01-01', 1, 2, NULL,"
    " NULL, NULL, 'last_write_wins')"
)


@dataclass(frozen=True)
class Before:
    """What the versions before have left behind."""

    entries: list[LoggedEntry]
    applied: int
    state: bytes
    intent: bytes

    @classmethod
    def of(cls, engine: Engine) -> Before:
        found = json.loads((Path(__file__).parent / "version_2" / f"{engine}.json").read_text())
        entries = [
            LoggedEntry(index, origin, session, sequence, b64decode(payload))
            for index, origin, session, sequence, payload in found["entries"]
        ]
        return cls(entries, found["applied"], b64decode(found["state"]), b64decode(found["intent"]))

    def fetch(self, first: int, last: int) -> Iterator[LogEntry]:
        return iter(self.entries[first - 1 : last])


@pytest.mark.parametrize("engine", ENGINES)
def test_payloads_of_the_version_before(engine: Engine) -> None:
    payloads = [entry.payload for entry in Before.of(engine).entries if entry.origin]
    assert {payload[1] for payload in payloads} == {2}
    decoded = [decode(payload) for payload in payloads]
    assert {payload.kind for payload in decoded} == set(PayloadKind)
    for payload in decoded:
        again = payload.encode()
        assert again[1] == VERSION
        assert decode(again) == payload
    altered = next(p.ddl for p in decoded if p.ddl is not None and p.ddl.statement.startswith(b"ALTER"))
    assert altered.statement.decode() == "ALTER TABLE s.t COMMENT 'café'"


def test_text_of_the_version_before_that_is_no_utf8() -> None:
    ddl = Ddl([("s", "t")], b"", "s", {}, 0)
    packed = msgpack.unpackb(Payload(PayloadKind.DDL, Flavour.MYSQL, 0, Position("f", 4), ("f", 4), ddl=ddl).encode())
    packed[0], packed[6][1] = 2, "caf\udce9"
    found = decode(msgpack.packb(packed, unicode_errors="surrogateescape")).ddl
    assert found is not None
    assert found.statement == b"caf\xe9"


def test_any_bytes_travel_in_a_statement_and_in_names() -> None:
    ddl = Ddl([("s", "caf\udce9")], b"CREATE TABLE caf\xe9 (\0\xff)", "s\udcff", {"x": "\udc80"}, 0)
    payload = Payload(PayloadKind.DDL, Flavour.MYSQL, 0, Position("f", 4), ("f", 4), ddl=ddl)
    assert decode(payload.encode()) == payload
    ddl.shown.encode()
    state = ReplicationState(1, lambda first, last: ())
    state.certifier.certify_ddl(1, 2, 0, [("s", "caf\udce9")])
    state.certifier.certify_ddl(2, 3, 0, [("s", "caf\udce9")])
    state._tables_at = -1  # whatever the checkpoint is
    tables = state.dump_tables()
    assert tables is not None
    loaded = ReplicationState.load(state.dump(), 1, lambda first, last: (), tables=tables)
    assert loaded.certifier.tables == state.certifier.tables != []


def test_versions_and_fields_to_come_are_refused() -> None:
    packed = msgpack.unpackb(Payload(PayloadKind.MARK, Flavour.MYSQL, 0, Position("f", 4), ("f", 4)).encode())
    with pytest.raises(PayloadError, match="payload version 4; this mysqlraft reads versions 2 to 3: upgrade it"):
        decode(msgpack.packb([4, *packed[1:]]))
    with pytest.raises(PayloadError):
        decode(msgpack.packb([*packed, 0]))
    state = msgpack.unpackb(ReplicationState(1, lambda first, last: ()).dump())
    with pytest.raises(StateError, match=f"has format 6, this mysqlraft reads 4 and {FORMAT}: run the one that wrote"):
        ReplicationState.load(msgpack.packb([6, *state[1:]]), 1, lambda first, last: ())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_of_the_format_before_goes_on(engine: Engine) -> None:
    before = Before.of(engine)
    assert msgpack.unpackb(before.state, strict_map_key=False)[0] == 4
    loaded, followed = ReplicationState.load(before.state, 1, before.fetch), ReplicationState(1, before.fetch)
    for entry in before.entries[: before.applied]:
        followed.step(entry)
    assert loaded.dump() == followed.dump()
    for entry in before.entries[before.applied :]:
        assert loaded.step(entry) == followed.step(entry)
    assert ReplicationState.load(loaded.dump(), 1, before.fetch).dump() == followed.dump()


def test_the_schema_before_is_converted_once(server: Server) -> None:
    run(server, *SCHEMA_1, "INSERT INTO mysqlraft.progress VALUES (1, 7, 'x', 'y')", CONFLICT)
    with closing(Session(server.connect)) as session:
        ensure_schema(session.query)
        assert list(session.query("SELECT version FROM mysqlraft.version")) == [(schema.VERSION,)]
        assert list(session.query("SELECT * FROM mysqlraft.progress")) == [(1, 7, b"x", b"y")]
        assert session.query("SELECT COUNT(*) FROM mysqlraft.conflicts")[0][0] == 1
        converted = definitions(session)
        before = session.query("SHOW BINARY LOGS")[-1]
        ensure_schema(session.query)
        assert session.query("SHOW BINARY LOGS")[-1] == before, "nothing was to be done"
        session.query("DROP DATABASE mysqlraft")
        ensure_schema(session.query)
        assert definitions(session) == converted


def test_a_conversion_goes_on_after_a_crash(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever statement was the last: all steps are taken again, and the version moves when all have been."""
    taken: list[str] = []

    def step(name: str) -> schema.Step:
        return lambda query: taken.append(name)

    newest = schema.VERSION + 2
    monkeypatch.setattr(schema, "VERSION", newest)
    steps = {newest - 1: (step("a"), step("b")), newest: (step("c"),)}
    monkeypatch.setattr(schema, "STEPS", schema.STEPS | steps)
    run(server, *SCHEMA_1, "INSERT INTO mysqlraft.progress VALUES (1, 7, 'x', 'y')")
    with closing(Session(server.connect)) as session:
        sent = 0
        while True:
            # It dies before one more statement each time.
            budget = sent

            def query(statement: str) -> Any:
                nonlocal budget
                if not budget:
                    raise ConnectionResetError
                budget -= 1
                return session.query(statement)

            try:
                ensure_schema(query)
                break
            except ConnectionResetError:
                sent += 1
        assert taken[-3:] == ["a", "b", "c"] or taken[-1:] == ["c"]
        assert set(taken) == {"a", "b", "c"}
        assert list(session.query("SELECT version FROM mysqlraft.version")) == [(newest,)]
        monkeypatch.setattr(schema, "VERSION", newest - 1)
        with pytest.raises(SchemaError, match=f"has version {newest}; this mysqlraft knows {newest - 1}: upgrade it"):
            ensure_schema(session.query)


def test_a_site_of_the_version_before_goes_on(server: Server, engine: Engine, tmp_path: Path) -> None:
    """Its server and its log's directory; and capture passes over all that is done to the schema `mysqlraft`."""
    before = Before.of(engine)
    run(
        server,
        *SCHEMA_1,
        f"INSERT INTO mysqlraft.progress VALUES (1, {before.applied}, 0x{before.state.hex()}, 0x{before.intent.hex()})",
        f"CREATE DATABASE s COLLATE utf8mb4_{'0900_ai_ci' if engine == 'mysql' else 'general_ci'}",
        "CREATE TABLE s.t (id INT PRIMARY KEY, v VARCHAR(500))",
        "INSERT INTO s.t VALUES (1, 'one'), (2, 'two')",
    )
    write_log(tmp_path, before)
    log = SharedLog(2)
    log.entries = read_log(tmp_path)
    with server.connect() as connection:
        now = position_now(connection)
    with capturing(server, CaptureState(now, (now.file, now.offset), before.applied)) as rig:
        applier = Applier(
            site=1,
            connect={"unix_socket": str(server.socket), "user": server.user, "password": server.password},
            log=SiteLink(log, 1),
            dump_server_id=901,
            look_ahead_server_id=77,
        )
        thread = threading.Thread(target=applier.run)
        thread.start()
        try:
            wait_for(lambda: applier.status.index == len(log.entries), 60, applier.status)
        finally:
            applier.stop()
            thread.join(60)
        rig.sync()
        assert rig.log() == []
    with closing(Session(server.connect)) as session:
        rows = [(1, "eins"), *((id, str(id % 10) * 400) for id in range(10, 16))]
        assert list(session.query("SELECT id, v FROM s.t ORDER BY id")) == rows
        assert "COMMENT='café'" in session.query("SHOW CREATE TABLE s.t")[0][1]
        applied, state = session.query("SELECT applied, state FROM mysqlraft.progress")[0]
        assert (applied, msgpack.unpackb(state, strict_map_key=False)[0]) == (len(log.entries), FORMAT)


def definitions(session: Session) -> list[str]:
    tables = [row[0] for row in session.query("SHOW TABLES FROM mysqlraft")]
    return [session.query(f"SHOW CREATE TABLE mysqlraft.{table}")[0][1] for table in tables]


def write_log(directory: Path, before: Before) -> None:
    store, chain = LevelDBStore(directory, "test", 1), 0
    entries = []
    for e in before.entries:
        kind = EntryKind.DATA if e.origin else EntryKind.CONFIGURATION
        entries.append(Entry(e.index, 1, kind, e.origin, e.session, e.sequence, e.payload, chain))
        chain = entries[-1].chain
    store.write([Write(hard_state=HardState(1, 1), entries=entries)])
    store.close()


def read_log(directory: Path) -> list[LoggedEntry]:
    store = LevelDBStore(directory, "test", 1)
    found = store.entries(1, store.last_index, 1 << 30)
    store.close()
    return [LoggedEntry(e.index, e.origin, e.session, e.sequence, e.payload) for e in found]
