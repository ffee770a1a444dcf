"""Mutual TLS between sites: which certificates a site starts with, and whom it lets speak."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mysqlraft import certificates
from mysqlraft.raft import tls
from mysqlraft.raft.messages import Heartbeat, Message
from mysqlraft.raft.tls import Tls, TlsError
from mysqlraft.raft.transport import Transport
from tests.raft.everybody import Everybody

NAMES = {1: "tokyo", 2: "oslo", 3: "lima"}
BEAT = Heartbeat(2, 1, 1, 0, 0, 1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certificates")
    certificates.make(made, "test", NAMES.values())
    return made


def load(directory: Path, name: str, site: str | None = None, ca: Path | None = None) -> Tls:
    return tls.load(directory / f"{name}.pem", directory / f"{name}.key", ca or directory / "ca.pem", site or name)


def refused(directory: Path, name: str, site: str | None = None, ca: Path | None = None) -> str:
    """Why a site does not start with these, as the daemon would say it."""
    with pytest.raises(TlsError) as error:
        load(directory, name, site, ca)
    print(f"tls.{error.value.item}: {error.value}")
    return f"tls.{error.value.item}: {error.value}"


def sign(
    directory: Path,
    stem: str,
    common_name: str,
    *extensions: x509.ExtensionType,
    password: bytes | None = None,
) -> None:
    """A certificate that only this test would ask the authority for."""
    key = ec.generate_private_key(ec.SECP256R1())
    authority = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
    signing = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = certificates._unsigned(name, authority.subject, key, 2)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    pem = serialization.Encoding.PEM
    locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    (directory / f"{stem}.pem").write_bytes(builder.sign(signing, hashes.SHA256()).public_bytes(pem))
    (directory / f"{stem}.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, locked))


# ---- what a site starts with --------------------------------------------------------------------------------------


def test_keys_are_their_owners_only_and_what_is_there_stays(tmp_path: Path) -> None:
    made = certificates.make(tmp_path, "test", ["tokyo"])
    assert [path.name for path in made] == ["ca.pem", "tokyo.pem"]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*.key")} == {0o600}
    before = (tmp_path / "tokyo.pem").read_bytes()
    assert certificates.make(tmp_path, "test", ["tokyo", "oslo"]) == [tmp_path / "oslo.pem"]
    assert (tmp_path / "tokyo.pem").read_bytes() == before
    assert certificates.make(tmp_path, "test", ["tokyo"], renew=True) == [tmp_path / "tokyo.pem"]
    assert (tmp_path / "tokyo.pem").read_bytes() != before
    load(tmp_path, "tokyo")
    load(tmp_path, "oslo")


def test_files_that_are_none_are_named(directory: Path, tmp_path: Path) -> None:
    assert refused(directory, "absent").endswith("absent.pem cannot be read: No such file or directory")
    assert refused(directory, "tokyo", ca=tmp_path / "ca.pem").startswith("tls.ca: ")
    (tmp_path / "ca.pem").write_text("nothing")
    assert "tls.ca: " in (reason := refused(directory, "tokyo", ca=tmp_path / "ca.pem"))
    assert "holds no certificates in PEM form" in reason
    for name in ("tokyo.pem", "tokyo.key"):
        (tmp_path / name).write_text("nothing")
    assert "are not a certificate and its key in PEM form" in refused(tmp_path, "tokyo", ca=directory / "ca.pem")


def test_the_key_of_another_certificate(directory: Path) -> None:
    with pytest.raises(TlsError, match=r"oslo\.key is not the key of .*tokyo\.pem") as error:
        tls.load(directory / "tokyo.pem", directory / "oslo.key", directory / "ca.pem", "tokyo")
    assert error.value.item == "key"


def test_an_encrypted_key_is_refused_and_not_asked_about(directory: Path) -> None:
    sign(directory, "locked", "tokyo", password=b"secret")
    assert "locked.key is encrypted" in refused(directory, "locked", "tokyo")


def test_a_certificate_that_the_others_would_refuse(directory: Path, tmp_path: Path) -> None:
    certificates.make(tmp_path, "test", ["tokyo"])
    reason = refused(directory, "tokyo", ca=tmp_path / "ca.pem")
    assert "tokyo.pem would be refused by the other sites, which believe" in reason
    certificates.make(tmp_path, "test", ["tokyo"], days=0, renew=True)
    assert "certificate has expired" in refused(tmp_path, "tokyo")
    sign(tmp_path, "server", "tokyo", x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]))
    assert "certificate purpose" in refused(tmp_path, "server", "tokyo")
    sign(tmp_path, "client", "tokyo", x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]))
    assert "certificate purpose" in refused(tmp_path, "client", "tokyo")


def test_a_certificate_has_to_name_its_site(directory: Path) -> None:
    assert refused(directory, "oslo", "tokyo").endswith("does not name this site, tokyo, but oslo")
    sign(directory, "common", "tokyo")
    load(directory, "common", "tokyo")
    # As everywhere, DNS names count and the common name does not if there are any.
    sign(directory, "both", "tokyo", x509.SubjectAlternativeName([x509.DNSName("a"), x509.DNSName("b")]))
    assert refused(directory, "both", "tokyo").endswith("but a, b")
    sign(directory, "wild", "x", x509.SubjectAlternativeName([x509.DNSName("*")]))
    assert refused(directory, "wild", "tokyo").endswith("but *")


# ---- whom it lets speak -------------------------------------------------------------------------------------------


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the conditions are of many kinds
        await asyncio.sleep(0.005)


class End(Transport):
    """A transport that notes what it receives."""

    def __init__(self, site: int, secured: Tls | None, names: dict[int, str] | None = None) -> None:
        self.received: list[Message] = []
        acquaintances = Everybody(names=NAMES if names is None else names)
        super().__init__(site, "test", acquaintances, self.received.append, lambda site: None, Random(site), secured)


def connect(
    first: End,
    second: End,
    work: Callable[[], Awaitable[None]],
    loops: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> None:
    """Runs `work` while site 1 dials what it takes for site 2."""

    async def run() -> None:
        async with asyncio.timeout(30):
            await first.start("127.0.0.1:0")
            await second.start("127.0.0.1:0")
            try:
                first.set_peers({2: f"127.0.0.1:{second.listener.port}"})
                await work()
            finally:
                await first.stop()
                await second.stop()

    with asyncio.Runner(loop_factory=loops) as runner:
        runner.run(run())


@pytest.mark.parametrize("loops", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_messages_of_all_sizes_arrive(loops: Callable[[], asyncio.AbstractEventLoop], directory: Path) -> None:
    first, second = End(1, load(directory, "tokyo")), End(2, load(directory, "oslo"))

    async def work() -> None:
        await until(lambda: first.connected(2))
        assert first.listener.incoming == set()
        version = {each.transport.get_extra_info("cipher")[1] for each in second.listener.incoming if each.transport}
        assert version == {"TLSv1.3"}
        first.publish(bytes(200_000))
        first.send([BEAT._replace(round=n) for n in range(1000)])
        await until(lambda: len(second.received) == 1000 and second.status_of(1) is not None)
        assert [getattr(beat, "round", None) for beat in second.received] == list(range(1000))

    connect(first, second, work, loops)


def refusal(first: End, second: End, reason: str, loud: str, caplog: pytest.LogCaptureFixture) -> None:
    """No message passes; the dialler's `problem` holds `reason`, and the log of one of them `loud`."""
    caplog.set_level(logging.INFO)

    async def work() -> None:
        await until(lambda: reason in (first.problem(2) or "") and loud in caplog.text)
        assert not first.connected(2)
        first.send([BEAT])
        assert second.received == []

    connect(first, second, work)
    print(caplog.text)


def test_the_certificate_of_another_site_does_not_pass_for_a_dialler(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refusal(
        End(1, load(directory, "lima")),
        End(2, load(directory, "oslo")),
        "the certificate shown is not that of site 1, tokyo, but of lima",
        "connection refused: the certificate shown is not that of site 1, tokyo, but of lima",
        caplog,
    )


def test_the_certificate_of_another_site_does_not_pass_for_the_dialled_one(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refusal(
        End(1, load(directory, "tokyo")),
        End(2, load(directory, "lima")),
        "the certificate shown is not that of site 2, oslo, but of lima",
        "not connected site=2",
        caplog,
    )


def test_a_site_without_a_name_is_refused(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    refusal(
        End(1, load(directory, "tokyo")),
        End(2, load(directory, "oslo"), {2: "oslo"}),
        "the name of site 1, which its certificate has to hold, is not known at site 2",
        "connection refused",
        caplog,
    )


def test_another_authority(directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificates.make(tmp_path, "test", NAMES.values())
    refusal(
        End(1, load(tmp_path, "tokyo")),
        End(2, load(directory, "oslo")),
        "certificate verify failed",
        "connection refused: no TLS handshake",
        caplog,
    )


def test_a_dialler_without_a_certificate(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    import ssl

    ours = load(directory, "tokyo")
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(directory / "ca.pem")
    refusal(
        End(1, ours._replace(client=bare)),
        End(2, load(directory, "oslo")),
        "during the handshake",
        "peer did not return a certificate",
        caplog,
    )


def test_one_end_without_tls(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    refusal(End(1, None), End(2, load(directory, "oslo")), "during the handshake", "connection refused: no TLS", caplog)
    caplog.clear()
    refusal(
        End(1, load(directory, "tokyo")),
        End(2, None),
        "the connection was closed during the TLS handshake",
        "it speaks TLS, which this site does not: one has tls, the other insecure",
        caplog,
    )


def test_a_peer_that_never_shakes_hands_holds_nothing_up(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = End(1, load(directory, "tokyo")), End(2, load(directory, "oslo"))

    async def work() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", second.listener.port)
        await until(lambda: first.connected(2))
        assert len(second.listener._greeting) == 1
        await second.stop()
        assert await reader.read() == b""
        writer.close()

    connect(first, second, work)


def test_new_connections_take_new_certificates(directory: Path, tmp_path: Path) -> None:
    """Another authority, taken over in three steps, each without a pause: believe both, show the new, believe one."""
    certificates.make(tmp_path, "test", NAMES.values())
    both = tmp_path / "both.pem"
    both.write_bytes((directory / "ca.pem").read_bytes() + (tmp_path / "ca.pem").read_bytes())
    first, second = End(1, load(directory, "tokyo")), End(2, load(directory, "oslo"))

    def serials() -> set[str]:
        certified = [each.certificate for each in second.listener.incoming]
        return {str(each["issuer"]) + str(each["serialNumber"]) for each in certified if each}

    async def again() -> None:
        for connection in list(second.listener.incoming):
            connection.abort()
        await until(lambda: not first.connected(2))
        await until(lambda: first.connected(2))

    async def work() -> None:
        await until(lambda: first.connected(2))
        before = serials()
        first.handshake.tls, second.handshake.tls = load(directory, "tokyo", ca=both), load(directory, "oslo", ca=both)
        await again()
        first.handshake.tls = load(tmp_path, "tokyo", ca=both)
        assert serials() == before, "connections that are there go on"
        await again()
        assert not serials() & before
        second.handshake.tls = load(tmp_path, "oslo", ca=both)
        await again()
        first.handshake.tls, second.handshake.tls = load(tmp_path, "tokyo"), load(tmp_path, "oslo")
        await again()
        first.handshake.tls = load(directory, "tokyo")
        for connection in list(second.listener.incoming):
            connection.abort()
        await until(lambda: "certificate verify failed" in (first.problem(2) or ""))

    connect(first, second, work)
