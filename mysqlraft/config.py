"""The daemon's configuration: the keys of its one YAML file, declared once.

Reading, error messages, ``mysqlraft config``, and the test that holds docs/configuration.md and configs/example.yaml to
the code all follow from these declarations. A password is not read with the file but when a connection needs it: so
``mysqlraft status`` works for a user who may not see it.
"""

# ruff: noqa: RUF009 (key() and section() make dataclass fields)

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mysqlraft import files, keys
from mysqlraft.keys import Address, ConfigError, Reader, Refused, Reload, key, section, sections

__all__ = ["Address", "Config", "ConfigError", "load", "parse"]

MIN_TOKEN = 16
"""Characters. A shorter one could be guessed."""
MAX_SECRET = 4096
"""Characters of a file with a password or a token."""
MAX_SITES = 15  # an origin is four bits in the certification map

_KiB, _MiB, _GiB = 1 << 10, 1 << 20, 1 << 30


def _pattern(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[^.\s]+\.[^.]+", value):
        raise Refused("schema.table, where * stands for any characters and ? for one, as in shop.*")
    return value


def _read_secret(at: str, path: Path) -> str:
    try:
        return files.read_text(path, MAX_SECRET).removesuffix("\n")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{at}: {path} cannot be read: {error}") from None


def _environment(at: str, name: str) -> str:
    if (secret := os.environ.get(name)) is None:
        raise ConfigError(f"{at}: the environment variable {name} is not set")
    return secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    id: int = key("The site's number: unique, and never another site's later.", keys.integer(1, MAX_SITES))
    name: str = key("The site's name, unique.", keys.name)
    address: Address = key("Where the other daemons reach this site's daemon.", Address.parse)
    voter: bool = key("Whether the site votes in elections and counts for commits.", keys.boolean, default=True)
    witness: bool = key(
        "A voter without a database server: it has no `mysql` section, and leads only while no other voter can.",
        keys.boolean,
        default=False,
    )
    priority: int = key(
        "Of the voters that can lead as well, the one with the greatest takes over after a while.",
        keys.integer(0, 100),
        default=0,
    )
    join: bool = key(
        "The site is not one of the founders: with an empty `data_dir` it waits until `mysqlraft members add` makes it "
        "a member.",
        keys.boolean,
        default=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    id: str = key("The cluster's name: daemons of another cluster are refused.", keys.name)
    sites: tuple[Site, ...] = sections(f"All sites, 1 to {MAX_SITES} of them.", Site)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminTlsSettings:
    """The certificate is read at the start and at each SIGHUP."""

    certificate: Path = key("PEM file of the admin API's certificate.", keys.path, reload=Reload.NOW)
    key: Path = keys.key("PEM file of its key, not encrypted.", keys.path, reload=Reload.NOW)
    ca: Path | None = keys.key(
        "PEM file of authorities: only clients with a certificate of theirs are answered. Verbs show `certificate`.",
        keys.path,
        default=None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminSettings:
    listen: Address = key(
        "Where the admin API listens. Beyond loopback only with a token or with `tls.ca`.",
        Address.parse,
        default=Address("127.0.0.1", 7451),
    )
    token_file: Path | None = key(
        "A file that holds the token which every request must show (`Authorization: Bearer ...`).",
        keys.path,
        default=None,
        reload=Reload.NOW,
    )
    token_env: str | None = key(
        "The environment variable that holds the token.", keys.text, default=None, reload=Reload.NOW
    )
    tls: AdminTlsSettings | None = section("TLS for the admin API; without it, none.", AdminTlsSettings, default=None)

    def read_token(self) -> str | None:
        """The token, None if none is configured.

        Raises:
            ConfigError: it cannot be read, or is none.
        """
        if self.token_file is not None:
            token = _read_secret("admin.token_file", self.token_file)
        elif self.token_env is not None:
            token = _environment("admin.token_env", self.token_env)
        else:
            return None
        if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
            where = "admin.token_env" if self.token_file is None else "admin.token_file"
            raise ConfigError(f"{where}: the token has to be at least {MIN_TOKEN} ASCII letters, digits or signs")
        return token


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTlsSettings:
    """The files are read at the start and at each SIGHUP."""

    certificate: Path = key(
        "PEM file of this site's certificate, and of those between it and `ca`, if any. It must name the site "
        "(a DNS name or, without any, the common name), and be fit for servers and clients.",
        keys.path,
        reload=Reload.NOW,
    )
    key: Path = keys.key("PEM file of the certificate's key, not encrypted.", keys.path, reload=Reload.NOW)
    ca: Path = keys.key(
        "PEM file of the authorities that sign the sites' certificates, and nobody else's.",
        keys.path,
        reload=Reload.NOW,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    ca: Path | None = key(
        "PEM file of the authority that signed the server's certificate; without it, the system's authorities.",
        keys.path,
        default=None,
        reload=Reload.REPLICA,
    )
    cert: Path | None = key(
        "PEM file of the client certificate, if the server asks for one.",
        keys.path,
        default=None,
        reload=Reload.REPLICA,
    )
    key: Path | None = keys.key(
        "PEM file of the client certificate's key.", keys.path, default=None, reload=Reload.REPLICA
    )
    verify_identity: bool = keys.key(
        "Whether the server's certificate must name `mysql.host`.", keys.boolean, default=True, reload=Reload.REPLICA
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MysqlSettings:
    host: str = key("The server's host.", keys.text, default="127.0.0.1", reload=Reload.REPLICA)
    port: int = key("The server's port.", keys.integer(1, 65535), default=3306, reload=Reload.REPLICA)
    socket: Path | None = key(
        "The server's Unix socket, in place of `host` and `port`.", keys.path, default=None, reload=Reload.REPLICA
    )
    user: str = key("The daemon's account at the server.", keys.text, reload=Reload.REPLICA)
    password_file: Path | None = key(
        "A file that holds the password; a line break at its end does not count.",
        keys.path,
        default=None,
        reload=Reload.REPLICA,
    )
    password_env: str | None = key(
        "The environment variable that holds the password.", keys.text, default=None, reload=Reload.REPLICA
    )
    password: str | None = key(
        "The password itself: for private servers only, such as the demo's.",
        lambda value: value if value == "" else keys.text(value),
        default=None,
        reload=Reload.REPLICA,
        secret=True,
    )
    connect_timeout: float = key(
        "How long connecting may take.", keys.number(0.1, 300), default=10.0, unit="seconds", reload=Reload.REPLICA
    )
    tls: TlsSettings | None = section(
        "TLS to the server; without this section, none.", TlsSettings, default=None, reload=Reload.REPLICA
    )

    def read_password(self) -> str:
        """The password, or "" if none is configured.

        Raises:
            ConfigError: its file or environment variable cannot be read.
        """
        if self.password_file is not None:
            return _read_secret("mysql.password_file", self.password_file)
        if self.password_env is not None:
            return _environment("mysql.password_env", self.password_env)
        return self.password or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicateSettings:
    """The same at every site. System schemas and ``mysqlraft`` itself are never replicated."""

    include: tuple[str, ...] = key(
        "Tables to replicate, `schema.table`, where `*` stands for any characters and `?` for one.",
        keys.list_of(_pattern),
        default=("*.*",),
    )
    exclude: tuple[str, ...] = key("Tables of these to leave out.", keys.list_of(_pattern), default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftSettings:
    tick_ms: int = key("The unit of every Raft timer.", keys.integer(5, 5000), default=100, unit="ms")
    election_ticks: int = key(
        "A follower that hears nothing for a random time from this to twice this stands for election. At least ten "
        "times the worst round trip.",
        keys.integer(2, 10_000),
        default=10,
        unit="ticks",
    )
    heartbeat_ticks: int = key("How often an idle leader is heard.", keys.integer(1, 5000), default=3, unit="ticks")
    inflight_bytes: int = key(
        "How much a leader sends to a follower ahead of its acknowledgements: at least bandwidth x round trip.",
        keys.size(64 * _KiB, _GiB),
        default=8 * _MiB,
        unit="bytes",
    )
    log_keep: int = key(
        "How many log entries stay beyond those that a member has not stored or this site may read again; `0` keeps "
        "the whole log. A site that joins, or lost its disk, needs the whole log: docs/consensus.md, Compaction.",
        keys.integer(0, 10**12),
        default=0,
        unit="entries",
        reload=Reload.NOW,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureSettings:
    position: str = key(
        "How to find a place in the binlog again: `gtid`, `file`, or `auto`: by its file while the server has that, "
        "else by GTID.",
        keys.one_of("auto", "gtid", "file"),
        default="auto",
        reload=Reload.REPLICA,
    )
    part_bytes: int = key(
        "Small transactions share a log entry up to this size; a larger one travels in parts of it.",
        keys.size(4 * _KiB, 8 * _MiB),
        default=_MiB,
        unit="bytes",
        reload=Reload.REPLICA,
    )
    window_bytes: int = key(
        "How much may be proposed and not yet committed; capture then waits.",
        keys.size(64 * _KiB, _GiB),
        default=16 * _MiB,
        unit="bytes",
        reload=Reload.REPLICA,
    )
    mark_seconds: float = key(
        "How often an idle site says in the log how far it has applied, so that the others can forget row keys.",
        keys.number(0.1, 3600),
        default=5.0,
        unit="seconds",
        reload=Reload.REPLICA,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplySettings:
    batch_rows: int = key(
        "The most rows in one server transaction, unless a single unit has more.",
        keys.integer(1, 100_000),
        default=2000,
        unit="rows",
        reload=Reload.REPLICA,
    )
    batch_bytes: int = key(
        "The most bytes of rows in one server transaction, unless a single unit has more.",
        keys.size(4 * _KiB, 64 * _MiB),
        default=4 * _MiB,
        unit="bytes",
        reload=Reload.REPLICA,
    )
    yield_after: float | None = key(
        "How long a transaction of the application may keep apply from going on; then its connection is ended, which "
        "rolls it back. `off`: as long as it likes.",
        keys.number_or_off(1, 3600),
        default=30.0,
        unit="seconds",
        reload=Reload.REPLICA,
    )
    policy: str = key(
        "Who wins a conflict: `last_write_wins`, the later one in the log. The same at every site.",
        keys.one_of("last_write_wins"),
        default="last_write_wins",
    )
    skip: tuple[int, ...] = key(
        "Log indices at which sites had stopped: statements not to be run, because what they do was done by hand, and "
        "rows that missed a statement, after the tables were made equal. The same at every site.",
        keys.list_of(keys.integer(1, 2**63 - 1)),
        default=(),
        reload=Reload.REPLICA,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    level: str = key(
        "The least severe messages to print: `debug`, `info`, `warning` or `error`.",
        keys.one_of("debug", "info", "warning", "error"),
        default="info",
        reload=Reload.NOW,
    )
    format: str = key(
        "`text`: key=value; `json`: one object a line.", keys.one_of("text", "json"), default="text", reload=Reload.NOW
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole file. ``source`` and ``yaml`` are what was read: the replica process reads the same text again."""

    source: Path
    yaml: str = field(repr=False)

    cluster: ClusterSettings = section("The cluster; the same at every site.", ClusterSettings)
    site: str = key("Which of the cluster's sites this daemon is.", keys.name)
    data_dir: Path = key("The directory of this daemon's log; made if it is missing.", keys.path)
    listen: Address | None = key(
        "Where to listen for the other daemons, if not at the site's own address.", Address.parse, default=None
    )
    dial: Mapping[str, Address] | None = key(
        "Where this site reaches others, if not at their addresses: `{name: host:port}`, as for a tunnel or address "
        "translation.",
        keys.map_of(Address.parse, 'site names with host:port each, as in {tokyo: "10.9.0.1:7450"}'),
        default=None,
    )
    tls: LinkTlsSettings | None = section(
        "Mutual TLS between the sites; without this section `insecure` must be true.", LinkTlsSettings, default=None
    )
    insecure: bool = key(
        "`true` in place of `tls`: the links between the sites are neither encrypted nor authenticated, and whoever "
        "reaches `listen` can change every site's data. For one machine or a private network.",
        keys.boolean,
        default=False,
    )
    admin: AdminSettings = section("The admin API.", AdminSettings, default=AdminSettings)
    mysql: MysqlSettings | None = section("The site's server; a witness has none.", MysqlSettings, default=None)
    replicate: ReplicateSettings = section(
        "Which tables are replicated; the same at every site.", ReplicateSettings, default=ReplicateSettings
    )
    raft: RaftSettings = section("Consensus.", RaftSettings, default=RaftSettings)
    capture: CaptureSettings = section("From the server's binlog to the log.", CaptureSettings, default=CaptureSettings)
    apply: ApplySettings = section("From the log to the server.", ApplySettings, default=ApplySettings)
    log: LogSettings = section("What the daemon prints.", LogSettings, default=LogSettings)

    @property
    def own(self) -> Site:
        """The site that this daemon is."""
        return next(site for site in self.cluster.sites if site.name == self.site)

    @property
    def founders(self) -> tuple[Site, ...]:
        """The sites that the cluster begins with."""
        return tuple(site for site in self.cluster.sites if not site.join)

    @property
    def server(self) -> MysqlSettings:
        """The site's server.

        Raises:
            ConfigError: it is a witness and has none.
        """
        if self.mysql is None:
            raise ConfigError(f"{self.source}: {self.site} is a witness: it has no server")
        return self.mysql

    @property
    def bind(self) -> Address:
        """Where this daemon listens for the others."""
        return self.listen or self.own.address

    def reach(self, site: Site) -> Address:
        """Where this daemon reaches another site's."""
        return (self.dial or {}).get(site.name, site.address)


def load(source: str | os.PathLike[str]) -> Config:
    """Reads and checks a file.

    Raises:
        ConfigError: with every problem found.
    """
    source = Path(source)
    try:
        text = files.read_text(source, keys.MAX_CHARACTERS)
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    return parse(text, source)


def parse(text: str, source: Path) -> Config:
    """Checks what was read from ``source``.

    Raises:
        ConfigError: with every problem found.
    """
    reader = Reader(source)
    config = reader.read(Config, text, source=source, yaml=text)
    for at, reason in _contradictions(config):
        reader.problem(at, reason)
    reader.check()
    return config


def _contradictions(config: Config) -> list[tuple[str, str]]:
    """(key path, reason) of what no single key can tell."""
    found: list[tuple[str, str]] = []
    sites = config.cluster.sites
    if not 1 <= len(sites) <= MAX_SITES:
        found.append(("cluster.sites", f"{len(sites)} sites are not allowed: 1 to {MAX_SITES}"))
    elif not any(site.voter and not site.witness for site in config.founders):
        reason = "at least one must vote: of the founders (without join: true) one that is no witness"
        found.append(("cluster.sites", reason))
    for n, site in enumerate(sites):
        if site.witness and not site.voter:
            found.append((f"cluster.sites[{n}].witness", "true with voter: false is not allowed: a witness only votes"))
    for unique in ("id", "name", "address"):
        values = [getattr(site, unique) for site in sites]
        for n, value in enumerate(values):
            if (first := values.index(value)) < n:
                taken = f"{value} is not allowed: cluster.sites[{first}] has it already"
                found.append((f"cluster.sites[{n}].{unique}", taken))
    if config.site not in (names := [site.name for site in sites]):
        found.append(("site", f"{config.site!r} is not allowed: one of {', '.join(names)}"))
    for name in config.dial or ():
        if name not in names:
            found.append((f"dial.{name}", f"{name!r} is not allowed: one of {', '.join(names)}"))
    if config.tls is None and not config.insecure:
        reason = (
            "is missing: give certificate, key and ca (`mysqlraft certificates` makes them), or insecure: true if the "
            "links between the sites need no encryption"
        )
        found.append(("tls", reason))
    elif config.tls is not None and config.insecure:
        found.append(("insecure", "true is not allowed together with tls: remove one of them"))
    found += _admin_contradictions(config.admin)
    if config.mysql is not None:
        found += _mysql_contradictions(config.mysql)
    witness = any(site.witness for site in sites if site.name == config.site)
    if witness and config.mysql is not None:
        found.append(("mysql", f"is not allowed: {config.site} is a witness and has no server"))
    elif not witness and config.mysql is None:
        found.append(("mysql", "is missing: The site's server. (Only a witness has none.)"))
    if config.raft.heartbeat_ticks * 3 > config.raft.election_ticks:
        reason = (
            f"{config.raft.heartbeat_ticks} is not allowed: at most a third of election_ticks "
            f"({config.raft.election_ticks}), or one lost heartbeat starts an election"
        )
        found.append(("raft.heartbeat_ticks", reason))
    return found


def _mysql_contradictions(mysql: MysqlSettings) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    ways = [way for way in ("password_file", "password_env", "password") if getattr(mysql, way) is not None]
    if len(ways) > 1:
        found.append((f"mysql.{ways[1]}", f"{' and '.join(ways)} together are not allowed: one of them"))
    tls = mysql.tls
    if tls is not None and (tls.cert is None) != (tls.key is None):
        found.append(("mysql.tls", "cert and key are only allowed together"))
    return found


def _admin_contradictions(admin: AdminSettings) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    token = admin.token_file is not None or admin.token_env is not None
    if not admin.listen.loopback and not token and (admin.tls is None or admin.tls.ca is None):
        reason = (
            f"{str(admin.listen)!r} is not allowed: beyond loopback everybody could use the admin API; give "
            "admin.token_file or admin.token_env, or admin.tls with ca"
        )
        found.append(("admin.listen", reason))
    if admin.token_file is not None and admin.token_env is not None:
        found.append(("admin.token_env", "token_file and token_env together are not allowed: one of them"))
    return found
