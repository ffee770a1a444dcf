"""The configuration: what is read, what is refused and how, and that the documentation tells the truth."""

from __future__ import annotations

import re
import time
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest
import yaml

from mysqlraft import config, keys
from mysqlraft.cli.config import reference
from mysqlraft.config import Address, Config, ConfigError
from tests.harness.daemons import MINIMAL

ROOT = Path(__file__).parent.parent


def read(text: str) -> Config:
    return config.parse(text, Path("tokyo.yaml"))


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return list(caught.value.problems)


def test_defaults() -> None:
    read_config = read(MINIMAL)
    assert read_config.own.id == 1
    assert read_config.bind == Address("127.0.0.1", 7450)
    assert read_config.raft.election_ticks == 10
    assert read_config.capture.part_bytes == 1 << 20
    assert read_config.server.read_password() == ""
    assert read_config.replicate.include == ("*.*",)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("site: paris", "tokyo.yaml:6: site: 'paris' is not allowed: one of tokyo, oslo"),
        ("mysql: {user: root, passwrd: x}", "tokyo.yaml:9: mysql.passwrd: unknown key; did you mean password?"),
        ("mysql: {user: root, colour: x}", "tokyo.yaml:9: mysql.colour: unknown key; known here: host, port, socket"),
        ("mysql: {port: 3306}", "tokyo.yaml:9: mysql.user: is missing: The daemon's account at the server."),
        ("mysql: root", "tokyo.yaml:9: mysql: 'root' is not allowed: a section of keys"),
        ("mysql:", "mysql: is missing: The site's server."),
        ("mysql: {user: root, port: 70000}", "mysql.port: 70000 is not allowed: an integer from 1 to 65535"),
        ("mysql: {user: root, port: true}", "mysql.port: True is not allowed: an integer from 1 to 65535"),
        ("mysql: {user: root, password: 7}", "mysql.password: **** is not allowed: a text"),
        ("mysql: {user: root, password: a, password_env: B}", "password_env and password together are not allowed"),
        ("mysql: {user: root, tls: {cert: c.pem}}", "mysql.tls: cert and key are only allowed together"),
        ("raft: {tick_ms: 1}", "tokyo.yaml:10: raft.tick_ms: 1 is not allowed: an integer from 5 to 5000 (ms)"),
        ("raft: {election_ticks: [10, 20]}", "raft.election_ticks: [10, 20] is not allowed: an integer from 2"),
        (
            "raft: {heartbeat_ticks: 4}",
            "heartbeat_ticks: 4 is not allowed: at most a third of election_ticks (10)",
        ),
        ("raft: {inflight_bytes: 8MB}", "'8MB' is not allowed: a size from 64KiB to 1GiB, as in 8MiB"),
        ("capture: {position: here}", "capture.position: 'here' is not allowed: one of auto, gtid, file"),
        ("capture: {mark_seconds: .nan}", "capture.mark_seconds: nan is not allowed: a number from 0.1 to 3600"),
        ("replicate: {include: shop.*}", "replicate.include: 'shop.*' is not allowed: a list"),
        ("replicate: {include: [shop]}", "tokyo.yaml:10: replicate.include[0]: 'shop' is not allowed: schema.table"),
        ('admin: {listen: "0.0.0.0:7451"}', "admin.listen: '0.0.0.0:7451' is not allowed: beyond loopback everybody"),
        (
            'admin: {listen: "h:1", tls: {certificate: c, key: k}}',
            "admin.listen: 'h:1' is not allowed: beyond loopback",
        ),
        ("admin: {token_file: f, token_env: E}", "admin.token_env: token_file and token_env together are not allowed"),
        ("listen: 7450", "listen: 7450 is not allowed: host:port, as in 10.0.0.1:7450"),
        ("dial: {paris: 'localhost:1'}", "dial.paris: 'paris' is not allowed: one of tokyo, oslo"),
        ("dial: {oslo: 1}", "tokyo.yaml:10: dial.oslo: 1 is not allowed: host:port, as in 10.0.0.1:7450"),
        ("dial:\n  tokyo: h:1\n  oslo: h", "tokyo.yaml:12: dial.oslo: 'h' is not allowed: host:port, as in"),
        ("dial: localhost:1", "dial: 'localhost:1' is not allowed: site names with host:port each"),
        ("log: {level: loud}", "log.level: 'loud' is not allowed: one of debug, info, warning, error"),
        ("insecure: 1", "insecure: 1 is not allowed: true or false"),
        ("insecure: false", "tls: is missing: give certificate, key and ca (`mysqlraft certificates` makes them), or"),
        ("insecure:", "insecure: None is not allowed: true or false"),
        ("tls: {certificate: c, key: k, ca: a}", "tokyo.yaml:8: insecure: true is not allowed together with tls"),
        ("tls: {certificate: c, ca: a}", "tls.key: is missing: PEM file of the certificate's key"),
        ("raft: {}\nraft: {}", "tokyo.yaml:11: raft: is given twice"),
        ("data_dir: ''", "tokyo.yaml:7: data_dir: '' is not allowed: a text that is not empty"),
        ("log: &a {level: *a}", "log.level: an alias that contains itself is not allowed"),
        ("cluster: {id: test, sites: []}", "cluster.sites: 0 sites are not allowed: 1 to 15"),
        ("cluster: {id: test, sites: x}", "cluster.sites: 'x' is not allowed: a list of sections"),
        ("cluster: {id: a b, sites: []}", "cluster.id: 'a b' is not allowed: 1 to 64 letters"),
        ("- a\n- b", "not YAML"),
        ("site: [", "not YAML"),
    ],
)
def test_refusals_name_key_value_and_what_is_allowed(change: str, expected: str) -> None:
    lines = MINIMAL.splitlines()
    name = change.partition(":")[0]
    # In the place of the key that it changes, so that the lines are those of MINIMAL.
    at = next((n for n, line in enumerate(lines) if line.startswith(f"{name}:")), len(lines))
    if change.count("\n"):
        at = len(lines)
    lines[at : at + (5 if name == "cluster" else 1)] = change.splitlines()
    text = "\n".join(lines)
    found = problems(text)
    print(found)
    assert any(expected in problem for problem in found), found


def test_every_problem_is_named_at_once() -> None:
    found = problems(MINIMAL.replace("root", "''") + "raft: {tick: 1, tick_ms: 1}\nlog: {format: xml}\n")
    assert [problem.split(": ")[1] for problem in found] == ["mysql.user", "raft.tick", "raft.tick_ms", "log.format"]


@pytest.mark.parametrize(
    ("sites", "expected"),
    [
        ("[{id: 1, name: a, address: 'localhost:1'}, {id: 1, name: b, address: 'localhost:2'}]", "sites[1].id: 1 is"),
        ("[{id: 1, name: a, address: 'localhost:1'}, {id: 2, name: a, address: 'localhost:2'}]", "sites[1].name: a is"),
        ("[{id: 1, name: a, address: 'localhost:1'}, {id: 2, name: b, address: 'localhost:1'}]", "sites[1].address:"),
        (
            "[{id: 1, name: a, address: 'localhost:1', join: true}]",
            "cluster.sites: at least one must vote: of the founders",
        ),
        (
            "[{id: 1, name: a, address: 'localhost:1'}, {id: 2, name: b, address: 'h:2', witness: true, voter: false}]",
            "sites[1].witness: true with voter: false is not allowed",
        ),
        (
            "[{id: 1, name: a, address: 'localhost:1', witness: true}, {id: 2, name: b, address: 'localhost:2'}]",
            "mysql: is not allowed: a is a witness and has no server",
        ),
        ("[{id: 1, name: a, address: 'localhost:1', priority: 101}]", "sites[0].priority: 101 is not allowed"),
        ("[{id: 16, name: a, address: 'localhost:1'}]", "sites[0].id: 16 is not allowed: an integer from 1 to 15"),
        ("[{id: 1, name: a, address: localhost}]", "sites[0].address: 'localhost' is not allowed: host:port"),
        ("[{id: 1, name: a, address: 'localhost:1', voter: false}]", "at least one must vote"),
        ("[{id: 1, name: a, adress: 'localhost:1'}]", "cluster.sites[0].adress: unknown key; did you mean address?"),
    ],
)
def test_cluster(sites: str, expected: str) -> None:
    text = f"cluster:\n  id: test\n  sites: {sites}\nsite: a\ndata_dir: d\ninsecure: true\nmysql: {{user: root}}\n"
    assert any(expected in problem for problem in problems(text))


def test_a_witness_has_no_server() -> None:
    witness = read(MINIMAL.replace('7450"', '7450", witness: true').replace("mysql: {user: root}", ""))
    assert witness.mysql is None
    with pytest.raises(ConfigError, match="tokyo is a witness: it has no server"):
        _ = witness.server


def test_the_founders_are_those_who_do_not_join() -> None:
    joined = read(MINIMAL.replace('7460"', '7460", join: true'))
    assert [site.name for site in joined.founders] == ["tokyo"]


@pytest.mark.parametrize(
    ("written", "host", "port"),
    [
        ("db.example.net:1", "db.example.net", 1),
        ("[2001:db8::1]:7450", "2001:db8::1", 7450),
        ("10.0.0.1:65535", "10.0.0.1", 65535),
    ],
)
def test_addresses(written: str, host: str, port: int) -> None:
    assert Address.parse(written) == Address(host, port)
    assert str(Address.parse(written)) == written


@pytest.mark.parametrize("written", ["10.0.0.1", "::1:7450", "h:0", "h:65536", "h:1:2", "", ":1", "h h:1", 7450, None])
def test_no_addresses(written: Any) -> None:
    with pytest.raises(keys.Refused):
        Address.parse(written)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        config.load(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"site: caf\xe9")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.load(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        (
            "a: &a [x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"{n}: &{n} [{f'*{p}, ' * 9}]\n" for n, p in zip("bcdefghi", "abcdefgh", strict=True)),
            "tokyo.yaml:10: more than 10,000 values, those of aliases counted",
        ),
        ("a: " + "[" * 5000, "tokyo.yaml:10: not YAML: more than 20 levels of nesting"),
        ("a: " + "{b: " * 5000, "tokyo.yaml:10: not YAML: more than 20 levels of nesting"),
        ("\n".join(" " * n + "a:" for n in range(300)), "tokyo.yaml:29: not YAML: more than 20 levels of nesting"),
        ("- " * 5000, "not YAML"),
        (
            "a0: &a0 ["
            + "[" * 15
            + "]" * 16
            + "\n"
            + "".join(f"a{n}: &a{n} {'[' * 15}*a{n - 1}{']' * 15}\n" for n in range(1, 20)),
            "tokyo.yaml:10: more than 20 levels of nesting, those of aliases counted",
        ),
        ("x: " + "[1, " * 3 + "1, " * 19_000 + "]]]", "tokyo.yaml:10: more than 10,000 values"),
        ("x: " + "a" * 70_000, "tokyo.yaml: larger than 65,536 characters"),
        ("x: 2026-02-30", "tokyo.yaml:10: x: '2026-02-30' cannot be read as timestamp; is it a text?"),
        ("x: " + "9" * 5000, "cannot be read as int"),
        ("x: !!bool maybe", "x: 'maybe' cannot be read as bool"),
        ("x: !!timestamp soon", "x: 'soon' cannot be read as timestamp"),
        ("x: !!python/object:os.system y", "tokyo.yaml:10: not YAML: could not determine a constructor for the tag"),
        ("? [a, b]\n: c", "tokyo.yaml:10: ?: a key has to be a name"),
        ("x: \x00", "tokyo.yaml: not YAML: unacceptable character #x0000: special characters are not allowed"),
        ('"a\\nb": c', "tokyo.yaml:10: 'a\\nb': unknown key"),
        ("\n".join(f"key{n}: 1" for n in range(4000)), "tokyo.yaml: and 3950 more"),
        ("\n".join("key: 1" for n in range(4000)), "tokyo.yaml: and 3950 more"),
    ],
)
@pytest.mark.timeout(20)
def test_a_hostile_file_costs_little_and_gets_clear_lines(added: str, expected: str) -> None:
    began = time.process_time()
    found = problems(MINIMAL + added)
    assert time.process_time() - began < 5
    assert len(found) <= keys.MAX_PROBLEMS + 1
    assert all("\n" not in problem and len(problem) < 400 for problem in found)
    print(found[-1])
    assert any(expected in problem for problem in found), found[:3]


def test_a_file_is_not_read_beyond_its_bound(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="/dev/zero: larger than 65,536 characters"):
        config.load("/dev/zero")
    endless = read(MINIMAL.replace("root", "root, password_file: /dev/zero"))
    with pytest.raises(ConfigError, match=r"mysql\.password_file: /dev/zero cannot be read: larger than 4,096 char"):
        endless.server.read_password()


def test_passwords_are_read_when_needed_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "password"
    from_file = read(MINIMAL.replace("root", f"root, password_file: {secret}"))
    with pytest.raises(ConfigError, match="cannot be read"):
        from_file.server.read_password()
    secret.write_text("hidden word \n")
    assert from_file.server.read_password() == "hidden word "

    from_environment = read(MINIMAL.replace("root", "root, password_env: SITE_PASSWORD"))
    monkeypatch.delenv("SITE_PASSWORD", raising=False)
    with pytest.raises(ConfigError, match="SITE_PASSWORD is not set"):
        from_environment.server.read_password()
    monkeypatch.setenv("SITE_PASSWORD", "hidden")
    assert from_environment.server.read_password() == "hidden"

    plain = read(MINIMAL.replace("root", "root, password: hidden"))
    assert plain.server.read_password() == "hidden"
    for one in (from_file, from_environment, plain):
        assert "hidden" not in repr(one)
        assert "hidden" not in str(keys.effective(one))


@pytest.mark.parametrize(
    "admin",
    [
        'listen: "0.0.0.0:1", token_file: f',
        'listen: "0.0.0.0:1", token_env: E',
        'listen: "0.0.0.0:1", tls: {certificate: c, key: k, ca: a}',
        'listen: "0.0.0.0:1", token_env: E, tls: {certificate: c, key: k}',
        'listen: "[::1]:1"',
    ],
)
def test_the_admin_api_beyond_loopback(admin: str) -> None:
    read(MINIMAL + f"admin: {{{admin}}}\n")


def test_tokens_are_read_when_needed_and_have_to_be_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(MINIMAL).admin.read_token() is None
    secret = tmp_path / "token"
    settings = read(MINIMAL + f"admin: {{token_file: {secret}}}").admin
    with pytest.raises(ConfigError, match=r"admin\.token_file: .* cannot be read"):
        settings.read_token()
    for bad in (
        "",
        "short\n",
        "with spaces in it, and long\n",
        "ümläüts-and-long-enough\n",
        "two-lines-of-it\nare-not-one\n",
    ):
        secret.write_text(bad)
        with pytest.raises(ConfigError, match=r"admin\.token_file: the token has to be at least 16 ASCII") as error:
            settings.read_token()
        assert bad.strip() == "" or bad.strip() not in str(error.value)
    secret.write_text("0123456789abcdef\n")
    assert settings.read_token() == "0123456789abcdef"
    settings = read(MINIMAL + "admin: {token_env: SITE_TOKEN}").admin
    monkeypatch.delenv("SITE_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="SITE_TOKEN is not set"):
        settings.read_token()
    monkeypatch.setenv("SITE_TOKEN", "fedcba9876543210")
    assert settings.read_token() == "fedcba9876543210"


def test_changes_know_what_a_reload_may_do() -> None:
    old = read(MINIMAL)
    new = read(
        MINIMAL.replace("root", "other, tls: {}").replace("7460", "7470")
        + "log: {level: debug}\nraft: {tick_ms: 20}\napply: {batch_rows: 10}\n"
    )
    assert keys.changed(old, new) == {
        "cluster.sites": keys.Reload.RESTART,
        "mysql.user": keys.Reload.REPLICA,
        "mysql.tls": keys.Reload.REPLICA,
        "raft.tick_ms": keys.Reload.RESTART,
        "apply.batch_rows": keys.Reload.REPLICA,
        "log.level": keys.Reload.NOW,
    }
    assert keys.changed(old, old) == {}


# The documentation.


def test_effective_reads_back() -> None:
    read_config = config.load(ROOT / "configs" / "example.yaml")
    shown = keys.effective(read_config)
    again = config.parse(yaml.safe_dump(shown), Path("again.yaml"))
    assert keys.effective(again) == shown


def test_reference_is_in_the_documentation() -> None:
    document = (ROOT / "docs" / "configuration.md").read_text()
    assert "\n".join(reference()) in document, (
        "mysqlraft config --reference prints what docs/configuration.md must hold"
    )


def test_example_explains_every_key_with_its_default() -> None:
    text = (ROOT / "configs" / "example.yaml").read_text()
    example = config.load(ROOT / "configs" / "example.yaml")
    # What an example cannot leave at its default.
    own = {"mysql.password_file"}
    for path, key, default in keys.walk(Config):
        name = path.rpartition(".")[2]
        assert re.search(rf"(^|[{{ ,#]){name}:", text, re.M), f"{path} is not in the example"
        if "[]" in path or path in own or default is MISSING:
            continue
        value: Any = example
        for step in path.split("."):
            value = getattr(value, step, None)
        if not path.startswith(("mysql.tls", "admin.tls")):
            assert value == default, path
        mark = {keys.Reload.NOW: "[now]", keys.Reload.REPLICA: "[replica]", keys.Reload.RESTART: None}[key.reload]
        if mark:
            assert re.search(rf"{name}:.*{re.escape(mark)}", text), f"{path} is not marked {mark}"


def test_demo_sites() -> None:
    sites = [config.load(path) for path in sorted((ROOT / "configs" / "demo").glob("*.yaml"))]
    assert sorted(one.own.id for one in sites) == [1, 2, 3, 4, 5, 6]
    assert len({one.cluster for one in sites}) == 1
    endpoints = [one.bind for one in sites] + [one.admin.listen for one in sites]
    assert len(set(endpoints)) == len(endpoints)
