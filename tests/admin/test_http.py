"""The admin API's server: its answers, and that no client can harm it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import pytest

from mysqlraft.admin import http
from mysqlraft.admin.http import HttpServer, Page

Ask = Callable[[bytes], Awaitable[bytes]]


def broken() -> Page:
    raise RuntimeError("a mistake in a page")


PAGES = {
    "/healthz": lambda: Page(HTTPStatus.OK, "ok\n"),
    "/status": lambda: Page.json({"site": "tokyo", "lag": None}),
    "/broken": broken,
}


async def echo(wish: dict[str, Any]) -> Page:
    return Page.json(wish)


async def wait(wish: dict[str, Any]) -> Page:
    waiting.append(asyncio.get_running_loop().create_future())
    await waiting[-1]
    return Page.json({})


ACTIONS = {"/echo": echo, "/wait": wait}
waiting: list[asyncio.Future[None]] = []
"""One for each request that `wait` has got."""


def serve(body: Callable[[Ask, int], Awaitable[None]]) -> None:
    """Runs ``body(ask, port)`` beside a server; ``ask`` sends bytes, ends its side, and returns the whole answer."""

    async def run() -> None:
        waiting.clear()
        server = HttpServer(PAGES, ACTIONS)
        await server.start("127.0.0.1", 0)
        assert server.port is not None
        port = server.port

        async def ask(request: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                writer.write_eof()
                return await reader.read()
            except ConnectionError:
                return b""  # it was cut off before it had said everything: that is an answer, too
            finally:
                writer.close()

        try:
            async with asyncio.timeout(30):
                await body(ask, port)
        finally:
            await server.stop()

    asyncio.run(run())


def test_pages() -> None:
    async def body(ask: Ask, port: int) -> None:
        answer = await ask(b"GET /status?x=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head, _, content = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Content-Type: application/json" in head
        assert b"Content-Length: %d" % len(content) in head
        assert content == b'{"site":"tokyo","lag":null}\n'
        answer = await ask(b"HEAD /status HTTP/1.0\r\n\r\n")
        assert answer.endswith(b"\r\n\r\n")
        assert b"Content-Length: 28" in answer

    serve(body)


POST, JSON = b"POST /echo HTTP/1.1\r\n", b"Content-Type: application/json\r\n"


def test_an_action_gets_what_was_sent_and_nobody_else_may_read_the_answer() -> None:
    async def body(ask: Ask, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST + JSON + b"Content-Length: 12\r\n\r\n" + b'{"site": 3 }')
        head, _, content = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"access-control" not in head.lower()
        assert content == b'{"site":3}\n'
        writer.close()

    serve(body)


def test_an_action_ends_when_its_client_leaves() -> None:
    async def body(ask: Ask, port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST.replace(b"/echo", b"/wait") + JSON + b"Content-Length: 2\r\n\r\n{}")
        while not waiting:  # noqa: ASYNC110 - the body's deadline bounds it
            await asyncio.sleep(0.001)
        writer.close()
        await asyncio.wait(waiting)
        assert waiting[0].cancelled()

    serve(body)


def test_the_end_is_no_error_of_who_still_waits(caplog: pytest.LogCaptureFixture) -> None:
    """Neither one whose action takes its time, nor one that has not asked yet."""

    async def run() -> None:
        waiting.clear()
        server = HttpServer(PAGES, ACTIONS)
        await server.start("127.0.0.1", 0)
        silent = await asyncio.open_connection("127.0.0.1", server.port)
        asking = await asyncio.open_connection("127.0.0.1", server.port)
        asking[1].write(POST.replace(b"/echo", b"/wait") + JSON + b"Content-Length: 2\r\n\r\n{}")
        async with asyncio.timeout(10):
            while not waiting:  # noqa: ASYNC110 - bounded
                await asyncio.sleep(0.001)
            await server.stop()
            for reader, writer in (silent, asking):
                assert await reader.read() == b""
                writer.close()
        assert waiting[0].cancelled()

    asyncio.run(run())
    assert caplog.text == ""


def test_actions_that_wait_leave_room_for_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_ACTIONS", 2)

    async def body(ask: Ask, port: int) -> None:
        request = POST.replace(b"/echo", b"/wait") + JSON + b"Content-Length: 2\r\n\r\n{}"
        clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for number, (_, writer) in enumerate(clients, 1):
            writer.write(request)
            while len(waiting) < min(number, 2):  # noqa: ASYNC110 - the body's deadline bounds it
                await asyncio.sleep(0.001)
        assert b"2 requests are waiting already" in await clients[2][0].read()
        assert (await ask(b"GET /healthz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200")
        for future in waiting:
            future.set_result(None)
        for reader, writer in clients[:2]:
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
        clients[2][1].close()

    serve(body)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /status HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"GET /echo HTTP/1.1\r\n\r\n", 405),
        (b"OPTIONS /echo HTTP/1.1\r\nOrigin: http://evil\r\nAccess-Control-Request-Method: POST\r\n\r\n", 405),
        (POST + JSON + b"Origin: http://127.0.0.1:7451\r\nContent-Length: 2\r\n\r\n{}", 403),
        (POST + b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 415),
        (POST + b"Content-Length: 2\r\n\r\n{}", 415),
        (POST + JSON + b"\r\n{}", 411),
        (POST + JSON + b"Content-Length: -2\r\n\r\n{}", 411),
        (POST + JSON + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (POST + JSON + b"Content-Length: 9\r\n\r\n{}", 400),
        (POST + JSON + b"Content-Length: 2\r\n\r\n{]", 400),
        (POST + JSON + b"Content-Length: 2\r\n\r\n[]", 400),
        (POST + JSON + b"Content-Length: 100000\r\n\r\n{}", 413),
        (b"GET /absent HTTP/1.1\r\n\r\n", 404),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"GET http://elsewhere/status HTTP/1.1\r\n\r\n", 400),
        (b"GET /status HTTP/2.0\r\n\r\n", 505),
        (b"GET /status\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /st\xc3\xa4tus HTTP/1.1\r\n\r\n", 400),
        (b"GET /status HTTP/1.1\r\nHost: local", 400),
        (b"GET /broken HTTP/1.1\r\n\r\n", 500),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET /status HTTP/1.1\r\n" + b"X: y\r\n" * 10_000 + b"\r\n", 431),
    ],
)
def test_what_is_not_a_request(request_: bytes, status: int) -> None:
    async def body(ask: Ask, port: int) -> None:
        answer = await ask(request_)
        # Of a client that still sends when its answer leaves, the connection may be reset.
        assert answer[:12] == b"HTTP/1.1 %d" % status or (status == 431 and answer == b"")
        assert b"Traceback" not in answer
        assert (await ask(b"GET /healthz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200")

    serve(body)


def test_slow_and_silent_clients_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "DEADLINE", 0.2)

    async def body(ask: Ask, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /status HT")
        assert await reader.read() == b""
        writer.close()

    serve(body)


def test_too_many_connections_are_refused_and_later_ones_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 3)

    async def body(ask: Ask, port: int) -> None:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert await ask(b"GET /healthz HTTP/1.1\r\n\r\n") == b""
        for _, writer in idle:
            writer.close()
        # The server learns of the three ends in its own time; the body's deadline bounds it.
        while not (await ask(b"GET /healthz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200"):
            pass

    serve(body)
