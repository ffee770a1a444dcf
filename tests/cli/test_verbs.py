"""The command line as its users meet it: answers, one-line errors, exit statuses."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import plyvel
import pytest

from mysqlraft import certificates, config, raft
from mysqlraft.admin.access import Access
from mysqlraft.admin.http import HttpServer, Page
from mysqlraft.cli import VERBS, admin, main
from mysqlraft.cli.errors import CommandError
from mysqlraft.raft import Configuration, Entry, EntryKind, HardState, LevelDBStore, Write
from mysqlraft.raft.entry import payload_checksum
from mysqlraft.raft.leveldb_store import _entry_key
from mysqlraft.sandbox.ports import reserve_port
from mysqlraft.sandbox.servers import Server

SETTINGS = """\
cluster:
  id: test
  sites:
    - {{id: 1, name: tokyo, address: "127.0.0.1:7450"}}
    - {{id: 2, name: oslo, address: "127.0.0.1:7460"}}
site: tokyo
data_dir: {directory}/log
insecure: true
admin: {{listen: "127.0.0.1:{admin}"}}
mysql: {{{mysql}}}
replicate: {{include: ["shop.*"]}}
"""


def write(directory: Path, mysql: str = "user: root", admin: int = 1) -> str:
    path = directory / "tokyo.yaml"
    path.write_text(SETTINGS.format(directory=directory, mysql=mysql, admin=admin))
    return str(path)


def of(server: Server) -> str:
    return f"socket: {server.socket}, user: {server.user}, password: {server.password}"


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert verb == "version" or f"mysqlraft {verb}" in shown.split("options:")[0], "examples come first"


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {"run"}))
def test_every_verb_but_run_prints_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, *(["list"] if verb == "members" else []), "--help"])
    assert "--json" in capsys.readouterr().out.split("options:")[1]


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)


def test_a_verb_imports_no_other(tmp_path: Path) -> None:
    program = (
        "import sys; from mysqlraft.cli import main; main(['version'])\n"
        "sys.exit(sorted({name for name in sys.modules if name.startswith('mysqlraft.')} &"
        " {'mysqlraft.daemon', 'mysqlraft.raft', 'mysqlraft.sandbox'}).__repr__())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("arguments", [["nonsense"], [], ["run"], ["status", "--admin", "here"], ["status", "-x"]])
def test_wrong_command_lines(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["run", "check", "status", "conflicts", "bootstrap", "config"])
def test_a_wrong_configuration_is_named_by_every_verb(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("site: tokyo\nnonsense: 1\n")
    assert main([verb, "--config", str(path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert f"mysqlraft: {path}:2: nonsense: unknown key; known here: cluster, site" in errors[0]
    assert all(line.startswith("mysqlraft: ") for line in errors)


def test_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "user: root, password: hidden")
    assert main(["config", "--config", path]) == 0
    shown = capsys.readouterr().out
    assert "hidden" not in shown
    assert "password: '****'" in shown
    assert "batch_rows: 2000" in shown
    assert main(["config", "--config", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["apply"]["policy"] == "last_write_wins"
    assert main(["config"]) == 2


def test_nobody_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = reserve_port()
    try:
        path = write(tmp_path, f"user: root, port: {port.port}", port.port)
        assert main(["status", "--config", path]) == 3
        assert "does not answer" in capsys.readouterr().err
        for verb in ("check", "conflicts"):
            assert main([verb, "--config", path]) == 3
            error = capsys.readouterr().err
            assert error.count("\n") == 1
            assert f"mysqlraft: the server at 127.0.0.1:{port.port} cannot be asked:" in error
    finally:
        port.release()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    shown = capsys.readouterr().out
    assert main(["version", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert shown == "mysqlraft {mysqlraft} (Python {python}, {system} {machine})\n".format(**found)


def test_bootstrap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    assert main(["bootstrap", "--config", path]) == 0
    assert "is bootstrapped: 1=tokyo@127.0.0.1:7450, 2=oslo@127.0.0.1:7460" in capsys.readouterr().out
    assert main(["bootstrap", "--config", path]) == 0
    assert "nothing changed" in capsys.readouterr().out
    assert main(["bootstrap", "--config", path, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == {"data_dir": str(tmp_path / "log"), "changed": False, "members": MEMBERS}
    Path(path).write_text(Path(path).read_text().replace("/log", "/another"))
    assert main(["bootstrap", "--config", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"]
    Path(path).write_text(Path(path).read_text().replace("name: oslo", "name: lima"))
    assert main(["bootstrap", "--config", path]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mysqlraft: cluster.sites: ")
    assert error.count("\n") == 1
    Path(path).write_text(Path(path).read_text().replace("id: test", "id: other"))
    assert main(["bootstrap", "--config", path]) == 2
    assert "mysqlraft: data_dir" in capsys.readouterr().err


def test_a_site_that_joins_founds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    Path(path).write_text(Path(path).read_text().replace('7450"', '7450", join: true'))
    assert main(["bootstrap", "--config", path]) == 2
    assert "tokyo has join: true and is no founder; `mysqlraft members add`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["members"],
        ["members", "explode"],
        ["members", "add", "x", "oslo", "h:1"],
        ["members", "add", "3", "oslo", "nowhere"],
        ["members", "priority", "oslo", "high"],
        ["barrier", "--timeout", "0"],
        ["wait"],
        ["wait", "--index", "-1"],
        ["transfer", "oslo", "--timeout", "soon"],
    ],
)
def test_changes_asked_for_wrongly(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["members", "list"], ["members", "remove", "oslo"], ["transfer"], ["barrier"], ["wait", "--index", "1"]],
)
def test_nobody_to_be_asked(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = reserve_port()
    try:
        path = write(tmp_path, admin=port.port)
        assert main([*arguments, "--config", path]) == 3
        assert f"the daemon at 127.0.0.1:{port.port} does not answer" in capsys.readouterr().err
    finally:
        port.release()


def test_check(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, of(server))
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE shop")
        cursor.execute("CREATE TABLE shop.notes (a INT)")
        assert main(["check", "--config", path]) == 1
        shown = capsys.readouterr().out
        assert "error: shop.notes has no primary key" in shown
        assert "not fit to be replicated: 1 errors" in shown
        assert main(["check", "--config", path, "--sql"]) == 1
        for statement in capsys.readouterr().out.splitlines():
            cursor.execute(statement)
        assert main(["check", "--config", path, "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["server"].startswith(f"{server.engine} {server.installation.version_text}")
        assert shown["fit"]
        # What takes another start of the server.
        assert [finding for finding in shown["findings"] if not finding["restart"]] == []


def test_the_account_as_check_prints_it(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, f"socket: {server.socket}, user: raft, password: 'choose a password'")
    assert main(["check", "--config", path]) == 3
    assert "is the password right?" in capsys.readouterr().err
    assert main(["check", "--config", path, "--grants", server.engine]) == 0
    with server.connect() as connection, connection.cursor() as cursor:
        for statement in capsys.readouterr().out.splitlines():
            cursor.execute(statement)
    assert main(["check", "--config", path]) == 0


def test_conflicts(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mysqlraft.mysql.connection import Session
    from mysqlraft.mysql.schema import ensure_schema

    path = write(tmp_path, of(server))
    assert main(["conflicts", "--config", path]) == 1
    assert "there is no conflict history yet" in capsys.readouterr().err
    session = Session(server.connect)
    ensure_schema(session.query)
    assert main(["conflicts", "--config", path]) == 0
    assert capsys.readouterr().out == "no conflicts\n"
    for index in range(1, 31):
        session.query(
            "INSERT INTO mysqlraft.conflicts (log_index, unit_number, number, schema_name, table_name, type, row_key,"
            " origin, committed_at, other_origin, other_index, image, resolution) VALUES"
            f" ({index}, 0, 0, 'shop', '{'orders' if index % 3 else 'order_log'}', 'update_origin_change', 'id=7', 1,"
            f" UTC_TIMESTAMP(6) - INTERVAL {40 - index} MINUTE, 2, {index - 1}, 'id=7 name=ü', 'last_write_wins')"
        )
    session.close()

    def shown(*arguments: str) -> list[int]:
        assert main(["conflicts", "--config", path, "--json", *arguments]) == 0
        return [json.loads(line)["log_index"] for line in capsys.readouterr().out.splitlines()]

    assert shown() == list(range(11, 31))
    assert shown("--limit", "3") == [28, 29, 30]
    assert shown("--limit", "0") == list(range(1, 31))
    assert shown("--since", "15m", "--limit", "0") == list(range(26, 31))
    assert shown("--since", "2999-01-01") == []
    assert shown("--table", "shop.order?log", "--limit", "0") == list(range(3, 31, 3))
    assert shown("--table", "shop.order_*", "--limit", "2") == [27, 30], "_ stands for itself"
    assert shown("--table", "other.*") == []
    assert main(["conflicts", "--config", path, "--limit", "1"]) == 0
    text = capsys.readouterr().out
    print(text)
    assert "shop.order_log id=7  update_origin_change" in text
    assert "tokyo (index 30): id=7 name=ü" in text
    assert "oslo (index 29)" in text


@pytest.mark.parametrize("arguments", [["--since", "yesterday"], ["--limit", "-1"], ["--limit", "all"]])
def test_conflicts_asked_for_wrongly(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        main(["conflicts", "--config", write(tmp_path), *arguments])
    assert end.value.code == 2


def test_certificates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["certificates", "--config", write(tmp_path), "--dir", str(tmp_path / "made")]
    assert main(command) == 0
    made = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert made == ["ca.pem", "tokyo.pem", "oslo.pem"]
    assert main(command) == 0
    assert "holds certificates for all 2 sites already" in capsys.readouterr().out
    assert main([*command, "--renew", "--days", "30"]) == 0
    assert "oslo.pem" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"dir": str(tmp_path / "made"), "made": []}
    assert main([*command, "--json", "--renew"]) == 0
    renewed = [str(tmp_path / "made" / name) for name in ("tokyo.pem", "oslo.pem")]
    assert json.loads(capsys.readouterr().out)["made"] == renewed
    (tmp_path / "made" / "ca.key").write_text("lost")
    assert main([*command, "--renew"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"mysqlraft: {tmp_path}/made: ")
    assert error.count("\n") == 1
    with pytest.raises(SystemExit):
        main([*command, "--days", "0"])


@pytest.fixture
def log(tmp_path: Path) -> tuple[str, Path]:
    """A configuration, and its data_dir with 30 entries."""
    path = write(tmp_path)
    directory = tmp_path / "log"
    first = Entry(1, 1, EntryKind.CONFIGURATION, payload=TOGETHER.encode())
    entries = [first]
    for index in range(2, 31):
        kind = EntryKind.NOOP if index == 2 else EntryKind.DATA
        origin, session, sequence = (0, 0, 0) if index == 2 else (1 + index % 2, 7, index)
        payload = b"x" * (index if origin else 0)
        entries.append(Entry(index, 2, kind, origin, session, sequence, payload, entries[-1].chain))
    store = LevelDBStore(directory, "test", 1)
    store.write([Write(HardState(2), entries, commit=28)])
    store.close()
    return path, directory


def member(site: int, name: str, port: int) -> dict[str, Any]:
    """A voter as --json shows it."""
    address = f"127.0.0.1:{port}"
    kept = {"voter": True, "witness": False, "priority": 0}
    return {"id": site, "name": name, "address": address, "kind": "voter", **kept}


MEMBERS = [member(1, "tokyo", 7450), member(2, "oslo", 7460)]
TOGETHER = Configuration([raft.Server(1, "tokyo", "127.0.0.1:7450"), raft.Server(2, "oslo", "127.0.0.1:7460")])


def test_log_show(log: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path, directory = log
    assert main(["log", "show", "--config", path]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 21
    assert shown[1].split()[:7] == ["11", "2", "data", "2", "7", "11", "11"]
    assert main(["log", "show", "--config", path, "--from", "1", "--to", "3", "--json"]) == 0
    first, second, third = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["kind"], second["kind"], third["kind"]) == ("configuration", "noop", "data")
    assert (second["origin"], third["origin"], third["bytes"]) == (None, 2, 3)
    with LevelDBOpen(directory) as store:  # as a daemon has it
        entry = store.entries(3, 3, 1)[0]
        assert (third["chain"], third["checksum"]) == (f"{entry.chain:016x}", f"{payload_checksum(b'xxx'):016x}")
        assert main(["log", "show", "--config", path, "--to", "3"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 4
    for wrong in (["--from", "31"], ["--to", "31"], ["--from", "9", "--to", "8"]):
        assert main(["log", "show", "--config", path, *wrong]) == 2
        assert "the log holds the entries 1 to 30, not" in capsys.readouterr().err


class LevelDBOpen:
    """A store that is in use."""

    def __init__(self, directory: Path) -> None:
        self._store = LevelDBStore(directory, "test", 1)

    def __enter__(self) -> LevelDBStore:
        return self._store

    def __exit__(self, *_: object) -> None:
        self._store.close()


def test_log_verify(log: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path, directory = log
    assert main(["log", "verify", "--config", path]) == 0
    assert capsys.readouterr().out == "all 30 entries are sound, 1 to 30\n"
    database = plyvel.DB(str(directory / "log"))
    record = bytearray(database.get(_entry_key(9)))
    record[-1] ^= 1
    database.put(_entry_key(9), bytes(record))
    database.close()
    assert main(["log", "verify", "--config", path]) == 1
    shown = capsys.readouterr().out
    assert "entry 9 is corrupt: entry 9: payload checksum mismatch" in shown
    assert "empty the directory and let it rejoin as a new member" in shown
    assert main(["log", "verify", "--config", path, "--json"]) == 1
    finding, summary = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert finding["index"] == 9
    assert summary == {"first": 1, "last": 30, "sound": 29, "problems": 1}
    assert main(["log", "verify", "--config", path, "--from", "10"]) == 0
    assert main(["log", "show", "--config", path, "--from", "9", "--to", "10"]) == 1
    assert "9 is corrupt" in capsys.readouterr().out


def test_log_of_another_site_or_of_none(log: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = log
    Path(path).write_text(Path(path).read_text().replace("site: tokyo", "site: oslo"))
    assert main(["log", "show", "--config", path]) == 2
    assert "belongs to site 1 of cluster 'test', this is site 2" in capsys.readouterr().err
    Path(path).write_text(Path(path).read_text().replace("/log", "/other"))
    assert main(["log", "verify", "--config", path]) == 2
    assert "holds no log" in capsys.readouterr().err


def test_recover(
    log: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, directory = log
    peers = tmp_path / "peers.json"
    peers.write_text('[{"id": 1, "address": "127.0.0.1:7455"}]')
    command = ["recover", "--config", path, "--peers", str(peers)]

    def members() -> Configuration:
        with LevelDBOpen(directory) as store:
            return store.configurations()[-1][1]

    assert main(command) == 2, "nobody to ask"
    assert "give --yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: "yes")
    assert main(command) == 1
    assert "nothing was changed" in capsys.readouterr().out
    assert members() == TOGETHER
    assert main([*command, "--json"]) == 1, "nobody is asked"
    planned = json.loads(capsys.readouterr().out)
    assert planned == {
        "cluster": "test",
        "site": "tokyo",
        "data_dir": str(directory),
        "last_index": 30,
        "last_term": 2,
        "committed": 28,
        "before": MEMBERS,
        "members": [member(1, "tokyo", 7455)],
        "done": False,
    }
    assert members() == TOGETHER
    monkeypatch.setattr("builtins.input", lambda prompt: "test")
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "its log: up to index 30, term 2; committed at least 28" in shown
    assert "members now:  1=tokyo@127.0.0.1:7450, 2=oslo@127.0.0.1:7460" in shown
    assert "from now on:  1=tokyo@127.0.0.1:7455" in shown
    assert "there may be two clusters" in shown
    assert members() == Configuration([raft.Server(1, "tokyo", "127.0.0.1:7455")])
    assert main([*command, "--yes"]) == 0, "again"
    capsys.readouterr()
    peers.write_text('[{"id": 1, "address": "127.0.0.1:7456"}]')
    assert main([*command, "--yes", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["done"], done["members"]) == (True, [member(1, "tokyo", 7456)])
    assert members() == Configuration([raft.Server(1, "tokyo", "127.0.0.1:7456")])


def test_recover_refuses(log: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, directory = log
    peers = tmp_path / "peers.json"
    command = ["recover", "--config", path, "--peers", str(peers), "--yes"]

    def refused(reason: str) -> None:
        assert main(command) == 2
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1

    refused("peers.json cannot be read: No such file")
    peers.write_text('[{"id": 2, "address": "127.0.0.1:7460"}]')
    refused("site 1 is not among the members")
    peers.write_text('[{"id": 1, "address": "127.0.0.1:7450"}]')
    with LevelDBOpen(directory):
        refused("is in use by another daemon (process ")
    Path(path).write_text(Path(path).read_text().replace("/log", "/other"))
    refused("holds no log to go on with")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("way", ["token", "certificates", "both"])
def test_the_verbs_show_what_the_file_names(
    way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates.make(tmp_path, "test", ["tokyo"])
    (tmp_path / "token").write_text("0123456789abcdef\n")
    tls = f"tls: {{certificate: {tmp_path}/tokyo.pem, key: {tmp_path}/tokyo.key"
    tls += "}" if way == "both" else f", ca: {tmp_path}/ca.pem}}"
    named = {"token": f"token_file: {tmp_path}/token", "certificates": tls}
    named["both"] = f"{named['token']}, {tls}"

    port = reserve_port()
    path = Path(write(tmp_path, admin=port.port))
    plain = path.read_text()
    path.write_text(plain.replace(f'{port.port}"}}', f'{port.port}", {named[way]}}}'))
    access = Access(config.load(path).admin)
    port.release()

    async def serve() -> None:
        server = HttpServer({"/status": lambda: Page.json({"site": "tokyo"})}, admits=access.admits)
        await server.start("127.0.0.1", port.port, access.tls)

        def ask(*arguments: str) -> tuple[Any, str]:
            try:
                return admin.daemon(parser.parse_args(arguments)).get("/status"), ""
            except CommandError as error:
                return None, str(error)

        parser = argparse.ArgumentParser()
        admin.add_arguments(parser)
        try:
            assert await asyncio.to_thread(ask, "--config", str(path)) == ({"site": "tokyo"}, "")
            answer, error = await asyncio.to_thread(ask, "--admin", f"127.0.0.1:{port.port}")
            assert answer is None
            assert "MYSQLRAFT_ADMIN_TOKEN" in error if way == "token" else "does not answer" in error
            if way == "token":
                monkeypatch.setenv("MYSQLRAFT_ADMIN_TOKEN", "0123456789abcdef")
                assert (await asyncio.to_thread(ask, "--admin", f"127.0.0.1:{port.port}"))[0] == {"site": "tokyo"}
                (tmp_path / "token").write_text("another-token-0000\n")
                answer, error = await asyncio.to_thread(ask, "--config", str(path))
                assert error.startswith("the daemon wants another token")
                assert "0000" not in error
        finally:
            await server.stop()

    asyncio.run(serve())
