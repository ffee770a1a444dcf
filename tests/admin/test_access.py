"""Who may use the admin API: tokens, TLS, client certificates."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path

import pytest

from mysqlraft import certificates
from mysqlraft.admin.access import Access, client
from mysqlraft.admin.http import HttpServer, Page
from mysqlraft.config import AdminSettings, AdminTlsSettings
from mysqlraft.keys import ConfigError

TOKEN = "0123456789abcdef"
PAGE = b"GET /status HTTP/1.1\r\n%b\r\n"

Ask = Callable[..., Awaitable[bytes]]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    certificates.make(tmp_path, "test", ["tokyo", "oslo"])
    return tmp_path


def tls(made: Path, *, mutual: bool = True, name: str = "tokyo") -> AdminTlsSettings:
    ca = made / "ca.pem" if mutual else None
    return AdminTlsSettings(certificate=made / f"{name}.pem", key=made / f"{name}.key", ca=ca)


def with_token(path: Path, token: str = TOKEN, secured: AdminTlsSettings | None = None) -> AdminSettings:
    (path / "token").write_text(token + "\n")
    return AdminSettings(token_file=path / "token", tls=secured)


def serve(access: Access, body: Callable[[Ask], Awaitable[None]]) -> None:
    """Runs `body(ask)`; `ask(header, context)` is the answer to a request for a page, or b"" if there is none."""

    async def run() -> None:
        server = HttpServer({"/status": lambda: Page(HTTPStatus.OK, "secret\n")}, admits=access.admits)
        await server.start("127.0.0.1", 0, access.tls)

        async def ask(header: bytes = b"", context: ssl.SSLContext | None = None) -> bytes:
            assert server.port is not None
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
            except (ssl.SSLError, ConnectionError):
                return b""
            try:
                writer.write(PAGE % header)
                return await reader.read()
            except (ssl.SSLError, ConnectionError):
                return b""
            finally:
                writer.close()

        try:
            async with asyncio.timeout(30):
                await body(ask)
        finally:
            await server.stop()

    asyncio.run(run())


def bearer(token: str) -> bytes:
    return b"Authorization: Bearer %b\r\n" % token.encode()


def test_without_a_token_everybody_is_answered() -> None:
    async def body(ask: Ask) -> None:
        assert b"secret" in await ask()
        assert b"secret" in await ask(bearer("whatever"))

    serve(Access(AdminSettings()), body)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        bearer(""),
        bearer(TOKEN[:-1]),
        bearer(TOKEN + "0"),
        bearer("ä"),
        b"Authorization: Basic " + TOKEN.encode() + b"\r\n",
    ],
)
def test_only_the_right_token_is_answered(header: bytes, tmp_path: Path) -> None:
    async def body(ask: Ask) -> None:
        answer = await ask(header)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"WWW-Authenticate: Bearer\r\n" in answer
        assert b"secret" not in answer
        assert b"admin.token_file or admin.token_env" in answer
        assert b"secret" in await ask(bearer(TOKEN))

    serve(Access(with_token(tmp_path)), body)


def test_a_request_for_what_is_not_there_tells_nothing_without_the_token(tmp_path: Path) -> None:
    access = Access(with_token(tmp_path))
    assert not access.admits(None)

    async def body(ask: Ask) -> None:
        assert b"/status" not in await ask()

    serve(access, body)


def test_tls_with_client_certificates(made: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    others = tmp_path_factory.mktemp("others")
    certificates.make(others, "test", ["tokyo"])

    async def body(ask: Ask) -> None:
        assert b"secret" in await ask(context=client(tls(made)))
        assert b"secret" not in await ask()
        assert await ask(context=client(tls(made, mutual=False))) == b"", "without a certificate of its own"
        stranger = client(tls(made, mutual=False))
        stranger.load_cert_chain(others / "tokyo.pem", others / "tokyo.key")
        assert await ask(context=stranger) == b"", "with one of another authority"
        assert await ask(context=client(tls(others))) == b"", "the verbs believe the configured certificate only"
        known = client(tls(made, mutual=False))
        known.load_cert_chain(made / "oslo.pem", made / "oslo.key")
        assert b"secret" in await ask(context=known)

    serve(Access(AdminSettings(tls=tls(made))), body)


def test_tls_with_a_token(made: Path) -> None:
    secured = tls(made, mutual=False)

    async def body(ask: Ask) -> None:
        context = client(secured)
        assert b" 401 " in await ask(context=context)
        assert b"secret" in await ask(bearer(TOKEN), context)

    serve(Access(with_token(made, secured=secured)), body)


def test_a_reload_takes_another_token_and_certificate(made: Path) -> None:
    before = with_token(made, secured=tls(made))
    access = Access(before)

    async def body(ask: Ask) -> None:
        old = client(tls(made))
        assert b"secret" in await ask(bearer(TOKEN), old)
        other = "f" * 20
        access.reload(with_token(made, other, tls(made, name="oslo")))
        assert await ask(bearer(other), old) == b"", "another certificate is shown"
        new = client(tls(made, name="oslo"))
        assert b" 401 " in await ask(bearer(TOKEN), new)
        assert b"secret" in await ask(bearer(other), new)
        (made / "oslo.key").write_text("nothing")
        with pytest.raises(ConfigError, match=r"admin\.tls\.certificate: .* cannot be used"):
            access.reload(with_token(made, "e" * 20, tls(made, name="oslo")))
        assert b"secret" in await ask(bearer(other), new), "nothing has changed"

    serve(access, body)


def test_files_that_will_not_do(made: Path) -> None:
    with pytest.raises(ConfigError, match=r"admin\.tls\.certificate: "):
        Access(AdminSettings(tls=tls(made, name="absent")))
    with pytest.raises(ConfigError, match=r"admin\.tls\.ca: "):
        Access(
            AdminSettings(
                tls=AdminTlsSettings(certificate=made / "tokyo.pem", key=made / "tokyo.key", ca=made / "absent")
            )
        )
    with pytest.raises(ConfigError, match=r"admin\.tls\.certificate: "):
        client(tls(made, name="absent"))
