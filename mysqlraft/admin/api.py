"""The pages of the admin API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from mysqlraft.admin.http import Action, HttpServer, Page
from mysqlraft.admin.metrics import CONTENT_TYPE, metrics
from mysqlraft.admin.status import unready


def admin_server(
    status: Callable[[], Mapping[str, Any]],
    broken: Callable[[], str],
    actions: Mapping[str, Action],
    admits: Callable[[str | None], bool],
) -> HttpServer:
    """A server of the admin API.

    Args:
        actions: what it does when it is asked to (actions.py).
        status: makes the whole status.
        broken: why this daemon cannot work any more, or "".
        admits: whether a request with this Authorization header is answered.
    """

    def health() -> Page:
        reason = broken()
        return Page(HTTPStatus.SERVICE_UNAVAILABLE, reason + "\n") if reason else Page(HTTPStatus.OK, "ok\n")

    def readiness() -> Page:
        reason = broken() or unready(status())
        return Page(HTTPStatus.SERVICE_UNAVAILABLE, reason + "\n") if reason else Page(HTTPStatus.OK, "ready\n")

    return HttpServer(
        {
            "/status": lambda: Page.json(status()),
            "/healthz": health,
            "/readyz": readiness,
            "/metrics": lambda: Page(HTTPStatus.OK, metrics(status()), CONTENT_TYPE),
        },
        actions,
        admits,
    )
