"""A small HTTP/1.1 server for a few pages and actions.

One request a connection: GET and HEAD for pages, POST with a JSON object for actions. It does not trust its clients: a
request has to arrive whole within `DEADLINE` seconds and `MAX_REQUEST` bytes, at most `MAX_CONNECTIONS` are open at
once, and whatever is no request gets a 4xx answer and is closed. That is all it takes here, and it is easier to trust
than a framework.

A browser on the same machine can be made to send requests here by any page that it shows. It cannot do anything with
them: an action takes only `application/json`, which a browser does not send elsewhere without asking first
(a preflight, which gets 405), and nothing that comes with an `Origin`, which a browser sends with every POST, also to
a name that was made to mean this machine. No answer allows another origin to read it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

logger = logging.getLogger(__name__)

MAX_REQUEST = 16 << 10
MAX_CONNECTIONS = 64
MAX_ACTIONS = 32
"""Actions may take long. More than so many at once are refused, so that pages can still be had."""
DEADLINE = 10.0


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    status: HTTPStatus
    content: str
    content_type: str = "text/plain; charset=utf-8"

    @classmethod
    def json(cls, value: Any, status: HTTPStatus = HTTPStatus.OK) -> Page:
        return cls(status, json.dumps(value, separators=(",", ":")) + "\n", "application/json")


Action = Callable[[dict[str, Any]], Awaitable[Page]]
"""Does what the JSON object says, and answers. It is cancelled if the client leaves."""


class _BadRequest(Exception):
    def __init__(self, status: HTTPStatus, reason: str = "") -> None:
        super().__init__(reason or status.phrase)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    """Without the query."""
    headers: Mapping[str, str]
    """By their names in lower case."""


class HttpServer:
    """Serves ``pages``: path -> what makes the page; and ``actions``: path -> what does it."""

    def __init__(
        self,
        pages: Mapping[str, Callable[[], Page]],
        actions: Mapping[str, Action] | None = None,
        admits: Callable[[str | None], bool] = lambda authorization: True,
    ) -> None:
        """``admits(the Authorization header)``: whether a request is answered at all."""
        self._pages = pages
        self._admits = admits
        self._actions = actions or {}
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[Any]] = set()
        self._acting = 0

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Raises OSError if it cannot listen there."""
        patience = None if tls is None else DEADLINE
        self._server = await asyncio.start_server(
            self._serve, host, port, limit=MAX_REQUEST, ssl=tls, ssl_handshake_timeout=patience
        )

    @property
    def port(self) -> int | None:
        """The port that it listens on; None while it does not."""
        return self._server.sockets[0].getsockname()[1] if self._server is not None else None

    async def stop(self) -> None:
        """Whoever still waits for an answer gets none."""
        if self._server is not None:
            self._server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if len(self._serving) >= MAX_CONNECTIONS or task is None:
            writer.close()
            return
        self._serving.add(task)
        try:
            answered = await self._answer(reader)
            if answered is not None:
                async with asyncio.timeout(DEADLINE):
                    await _write(writer, *answered)
        except (TimeoutError, OSError):
            pass  # the client is too slow or gone: there is nobody to tell
        except asyncio.CancelledError:
            pass  # by `stop`; let through, asyncio would take it for an error
        finally:
            self._serving.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[Page, str, bool] | None:
        """(answer, methods that the path allows, whether only its head is wanted); None if nobody waits for one."""
        head_only, allowed = False, "GET, HEAD"
        try:
            async with asyncio.timeout(DEADLINE):
                request = _parse(await reader.readuntil(b"\r\n\r\n"))
                head_only = request.method == "HEAD"
                if not self._admits(request.headers.get("authorization")):
                    raise _BadRequest(
                        HTTPStatus.UNAUTHORIZED,
                        "the token of admin.token_file or admin.token_env is missing, or is another one",
                    )
                if request.path in self._actions:
                    allowed = "POST"
                if request.method not in allowed.split(", "):
                    raise _BadRequest(HTTPStatus.METHOD_NOT_ALLOWED)
                wish = await _body(request, reader) if allowed == "POST" else {}
            if allowed == "POST":
                page = await self._act(self._actions[request.path], wish, reader)
            elif (make := self._pages.get(request.path)) is None:
                raise _BadRequest(HTTPStatus.NOT_FOUND)
            else:
                page = make()
        except _BadRequest as error:
            known = f"; there are {', '.join((*self._pages, *self._actions))}" if error.status == 404 else ""
            page = Page(error.status, f"{error}{known}\n")
        except asyncio.LimitOverrunError:
            page = Page(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request is too long\n")
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                return None
            page = Page(HTTPStatus.BAD_REQUEST, "the request is not complete\n")
        except (TimeoutError, ConnectionError):
            raise
        except Exception:
            # A page that fails must not take the daemon with it; whoever asked is told.
            logger.exception("an admin page failed")
            page = Page(HTTPStatus.INTERNAL_SERVER_ERROR, "this page failed; the log says why\n")
        return page, allowed, head_only

    async def _act(self, action: Action, wish: dict[str, Any], reader: asyncio.StreamReader) -> Page:
        """The action's answer. Raises ConnectionError if the client leaves before it is there."""
        if self._acting >= MAX_ACTIONS:
            raise _BadRequest(HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_ACTIONS} requests are waiting already")
        self._acting += 1
        acting = asyncio.ensure_future(action(wish))
        leaving = asyncio.ensure_future(_leaving(reader))
        try:
            await asyncio.wait([acting, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not acting.done():
                raise ConnectionError("the client has left")
            return acting.result()
        finally:
            self._acting -= 1
            acting.cancel()
            leaving.cancel()


async def _leaving(reader: asyncio.StreamReader) -> None:
    """Until the client's connection ends; whatever it says meanwhile is of no interest."""
    try:
        while await reader.read(MAX_REQUEST):
            pass
    except OSError:
        return


async def _write(writer: asyncio.StreamWriter, page: Page, allowed: str, head_only: bool) -> None:
    content = page.content.encode()
    head = (
        f"HTTP/1.1 {page.status.value} {page.status.phrase}\r\n"
        f"Content-Type: {page.content_type}\r\n"
        f"Content-Length: {len(content)}\r\n"
        "Cache-Control: no-store\r\n"
        "X-Content-Type-Options: nosniff\r\n"
        + (f"Allow: {allowed}\r\n" if page.status is HTTPStatus.METHOD_NOT_ALLOWED else "")
        + ("WWW-Authenticate: Bearer\r\n" if page.status is HTTPStatus.UNAUTHORIZED else "")
        + "Connection: close\r\n\r\n"
    )
    writer.write(head.encode("ascii") + (b"" if head_only else content))
    await writer.drain()


def _parse(request: bytes) -> _Request:
    first, *lines = request.removesuffix(b"\r\n\r\n").split(b"\r\n")
    try:
        method, target, version = first.decode("ascii").split(" ")
    except ValueError:
        raise _BadRequest(HTTPStatus.BAD_REQUEST) from None
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        known = version.startswith("HTTP/")
        raise _BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED if known else HTTPStatus.BAD_REQUEST)
    if not target.startswith("/"):
        raise _BadRequest(HTTPStatus.BAD_REQUEST)
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or name.lower() in headers:
            raise _BadRequest(HTTPStatus.BAD_REQUEST)
        headers[name.lower()] = value.strip()
    return _Request(method, target.partition("?")[0], headers)


async def _body(request: _Request, reader: asyncio.StreamReader) -> dict[str, Any]:
    """The JSON object that an action was asked with. Raises _BadRequest."""
    headers = request.headers
    if "origin" in headers:
        raise _BadRequest(HTTPStatus.FORBIDDEN, "this is not for browsers: a request with an Origin is refused")
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise _BadRequest(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "only Content-Type: application/json is taken")
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()):
        raise _BadRequest(HTTPStatus.LENGTH_REQUIRED)
    if int(length) > MAX_REQUEST:
        raise _BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    try:
        wish = json.loads(await reader.readexactly(int(length)) or b"{}")
    except (ValueError, RecursionError):
        raise _BadRequest(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None
    if not isinstance(wish, dict):
        raise _BadRequest(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
    return wish
