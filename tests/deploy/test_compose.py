"""docker-compose.yml and the six configurations beside it belong together, and its server is fit to be replicated."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mysqlraft import config
from mysqlraft.sandbox.servers import Engine, Installation, Server
from tests.harness.tools import run_tool

REPOSITORY = Path(__file__).parents[2]
SITES = ("tokyo", "singapore", "frankfurt", "dublin", "virginia", "oregon")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file as docker-compose understands it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MYSQL", "COMPOSE"))}
    file = str(REPOSITORY / "docker-compose.yml")
    done = run_tool("docker-compose", "-f", file, "config", environment=environment)
    print(f"docker-compose config: exit status {done.returncode}, {len(done.stdout)} characters")
    assert done.returncode == 0, done.stderr
    parsed: dict[str, Any] = yaml.safe_load(done.stdout)
    return parsed


def sources(service: dict[str, Any]) -> dict[str, str]:
    """Where a service's mounts come from: path in the container -> volume or file."""
    found = {}
    for mount in service["volumes"]:
        # Version 1 of docker-compose prints SOURCE:TARGET:MODE, version 2 an object.
        if isinstance(mount, str):
            source, target = mount.split(":")[:2]
        else:
            source, target = mount["source"], mount["target"]
        found[target] = source
    return found


def test_six_sites(compose: dict[str, Any]) -> None:
    services = dict(compose["services"])
    once = services.pop("certificates")
    assert once["command"][0] == "certificates"
    assert set(services) == {*SITES, *(f"mysql-{site}" for site in SITES)}
    for service in services.values():
        assert service["healthcheck"]["test"]
        assert service["restart"] == "unless-stopped"
    volumes = [source for service in services.values() for source in sources(service).values() if "/" not in source]
    assert [volumes.count(shared) for shared in set(volumes) if volumes.count(shared) > 1] == [len(SITES)]
    assert set(compose["volumes"]) == set(volumes)
    assert sources(once)["/var/lib/mysqlraft"] == sources(services["tokyo"])["/etc/mysqlraft/certificates"]
    assert len(compose["volumes"]) == 13


def test_one_image_is_built_once(compose: dict[str, Any]) -> None:
    """Seven builds of one tag give it seven images, one after the other, and `up` then restarts the daemons."""
    services = compose["services"]
    assert [name for name, service in services.items() if "build" in service] == ["certificates"]
    for site in SITES:
        assert services[site]["image"] == services["certificates"]["image"]
        assert services[site]["pull_policy"] == "never", "it is on no registry"
        assert "certificates" in services[site]["depends_on"]


def test_every_service_has_a_bound_of_memory(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        least = 768 if name.startswith("mysql-") else 256
        assert size(str(service["mem_limit"])) >= least << 20, name


def size(shown: str) -> int:
    """As docker-compose prints it: a number of bytes, or with a unit."""
    factor = {"m": 1 << 20, "g": 1 << 30}.get(shown[-1].lower())
    return int(shown) if factor is None else int(float(shown[:-1]) * factor)


def test_the_hosts_own_server_keeps_its_port(compose: dict[str, Any]) -> None:
    published = []
    for site in SITES:
        (port,) = compose["services"][f"mysql-{site}"]["ports"]
        if isinstance(port, str):
            host, outside, inside = port.removesuffix("/tcp").split(":")
        else:
            host, outside, inside = port["host_ip"], port["published"], port["target"]
        assert (host, int(inside)) == ("127.0.0.1", 3306)
        published.append(int(outside))
    assert len(set(published)) == len(SITES)
    assert not {3306, 33060} & set(published), "MySQL's own, and that of its X protocol"


def test_a_site_that_was_cut_off_by_hand_comes_back_under_its_name(compose: dict[str, Any]) -> None:
    """Docker forgets the names of a container that it disconnects: without them nobody finds it again."""
    text = (REPOSITORY / "docker-compose.yml").read_text()
    network = compose["networks"]["wan"]["name"]
    commands = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#   docker network")]
    assert commands == [
        f"docker network disconnect {network} $(docker compose ps -q oregon)",
        f"docker network connect --alias oregon {network} $(docker compose ps -q oregon)",
    ]


@pytest.mark.parametrize("site", SITES)
def test_site(compose: dict[str, Any], site: str) -> None:
    services = compose["services"]
    server, daemon = services[f"mysql-{site}"], services[site]
    mounted = sources(daemon)
    settings = config.load(mounted["/etc/mysqlraft/site.yaml"])

    assert settings.site == site
    assert settings.server.host == f"mysql-{site}"
    assert settings.server.password_env in daemon["environment"]
    assert server["environment"][settings.server.password_env] == daemon["environment"][settings.server.password_env]
    assert settings.data_dir.is_relative_to("/var/lib/mysqlraft")
    assert "/var/lib/mysqlraft" in mounted
    for peer in settings.cluster.sites:
        assert peer.address.host in services, "the other daemons are found by their services' names"
        assert peer.address.port == settings.bind.port
    assert settings.cluster == config.load(REPOSITORY / "configs/compose/tokyo.yaml").cluster
    assert f"--server-id={settings.own.id}" in server["command"]
    assert f"--auto-increment-offset={settings.own.id}" in server["command"]
    # A server is seen by its own site only; the daemons meet elsewhere.
    assert set(server["networks"]) == {site}
    assert set(daemon["networks"]) == {site, "wan"}
    waits = {on: how["condition"] for on, how in daemon["depends_on"].items()}
    assert waits == {f"mysql-{site}": "service_healthy", "certificates": "service_completed_successfully"}
    assert settings.tls is not None
    for file, name in ((settings.tls.certificate, f"{site}.pem"), (settings.tls.key, f"{site}.key")):
        assert file == Path("/etc/mysqlraft/certificates", name), "as `mysqlraft certificates` names them"
    assert "/etc/mysqlraft/certificates" in mounted
    for target in ("/etc/mysql/conf.d/mysqlraft.cnf", "/docker-entrypoint-initdb.d/mysqlraft.sh"):
        assert Path(sources(server)[target]).is_file()


@pytest.mark.parametrize("engine", ["mysql"], indirect=True)
def test_server_as_configured_passes_preflight(engine: Engine, installation: Installation, tmp_path: Path) -> None:
    """The settings and the account of the compose file, on a real server."""
    parser = configparser.RawConfigParser(allow_no_value=True)
    parser.read(REPOSITORY / "deploy/compose/mysql.cnf")
    options = {**parser["mysqld"], "auto_increment_offset": "1"}
    password = "it's a \\ secret"
    with Server.create(installation, tmp_path / "server", options=options) as server:
        initialise = tmp_path / "statements.sql"
        # The entry point of the image sources the script; here its function only records what it is given.
        subprocess.run(
            ["bash", "-euc", 'docker_process_sql() { cat >"$OUT"; }; . "$0"', REPOSITORY / "deploy/compose/account.sh"],
            env={**os.environ, "MYSQLRAFT_PASSWORD": password, "OUT": str(initialise)},
            check=True,
        )
        with server.connect() as connection, connection.cursor() as cursor:
            for statement in initialise.read_text().split(";")[:-1]:
                cursor.execute(statement)

        text = yaml.safe_load((REPOSITORY / "configs/compose/tokyo.yaml").read_text())
        text["mysql"] |= {"host": server.address[0], "port": server.port}
        text["data_dir"] = str(tmp_path / "log")
        file = tmp_path / "site.yaml"
        file.write_text(yaml.safe_dump(text))
        done = subprocess.run(
            [REPOSITORY / ".venv/bin/mysqlraft", "check", "--config", file, "--json"],
            env={**os.environ, "MYSQLRAFT_PASSWORD": password},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        print(done.stdout, done.stderr)
        assert done.returncode == 0
        assert [finding for finding in findings(json.loads(done.stdout)) if finding["severity"] != "info"] == []


def findings(answer: Any) -> list[dict[str, Any]]:
    """The findings in the answer of `mysqlraft check --json`."""
    listed = answer["findings"] if isinstance(answer, dict) else answer
    assert isinstance(listed, list)
    return listed
