"""A small HTTP/1.1 server for a few read-only pages on loopback.

One request a connection, GET and HEAD, no bodies. It does not trust its clients: a request has to arrive whole within
`DEADLINE` seconds and `MAX_REQUEST` bytes, at most `MAX_CONNECTIONS` are open at once, and whatever is no request gets
a 4xx answer and is closed. That is all it takes here, and 100 lines are easier to trust than a framework.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

logger = logging.getLogger(__name__)

MAX_REQUEST = 16 << 10
MAX_CONNECTIONS = 64
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


class _BadRequest(Exception):
    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


class HttpServer:
    """Serves ``pages``: path -> what makes the page."""

    def __init__(self, pages: Mapping[str, Callable[[], Page]]) -> None:
        self._pages = pages
        self._server: asyncio.Server | None = None
        self._open = 0

    async def start(self, host: str, port: int) -> None:
        """Raises OSError if it cannot listen there."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_REQUEST)

    @property
    def port(self) -> int | None:
        """The port that it listens on; None while it does not."""
        return self._server.sockets[0].getsockname()[1] if self._server is not None else None

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS:
                async with asyncio.timeout(DEADLINE):
                    await self._answer(reader, writer)
        except (TimeoutError, OSError):
            pass  # the client is too slow or gone: there is nobody to tell
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head_only = False
        try:
            method, path = _parse(await reader.readuntil(b"\r\n\r\n"))
            head_only = method == "HEAD"
            if method not in ("GET", "HEAD"):
                raise _BadRequest(HTTPStatus.METHOD_NOT_ALLOWED)
            if (make := self._pages.get(path)) is None:
                raise _BadRequest(HTTPStatus.NOT_FOUND)
            page = make()
        except _BadRequest as error:
            known = f"; there are {', '.join(self._pages)}" if error.status is HTTPStatus.NOT_FOUND else ""
            page = Page(error.status, f"{error.status.phrase}{known}\n")
        except asyncio.LimitOverrunError:
            page = Page(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request is too long\n")
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                return
            page = Page(HTTPStatus.BAD_REQUEST, "the request is not complete\n")
        except Exception:
            logger.exception("an admin page failed")
            page = Page(HTTPStatus.INTERNAL_SERVER_ERROR, "this page failed; the log says why\n")
        content = page.content.encode()
        head = (
            f"HTTP/1.1 {page.status.value} {page.status.phrase}\r\n"
            f"Content-Type: {page.content_type}\r\n"
            f"Content-Length: {len(content)}\r\n"
            "Cache-Control: no-store\r\n"
            "X-Content-Type-Options: nosniff\r\n"
            + ("Allow: GET, HEAD\r\n" if page.status is HTTPStatus.METHOD_NOT_ALLOWED else "")
            + "Connection: close\r\n\r\n"
        )
        writer.write(head.encode("ascii") + (b"" if head_only else content))
        await writer.drain()


def _parse(request: bytes) -> tuple[str, str]:
    """(method, path without query)."""
    line = request.partition(b"\r\n")[0]
    try:
        method, target, version = line.decode("ascii").split(" ")
    except ValueError:
        raise _BadRequest(HTTPStatus.BAD_REQUEST) from None
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        known = version.startswith("HTTP/")
        raise _BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED if known else HTTPStatus.BAD_REQUEST)
    if not target.startswith("/"):
        raise _BadRequest(HTTPStatus.BAD_REQUEST)
    return method, target.partition("?")[0]
