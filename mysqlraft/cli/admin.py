"""How the verbs ask the site's daemon, by its admin API."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from mysqlraft import config
from mysqlraft.admin import access
from mysqlraft.cli.errors import EXIT_NO, EXIT_UNREACHABLE, EXIT_USAGE, CommandError
from mysqlraft.config import AdminSettings
from mysqlraft.keys import Address, Refused

_PAGE_SECONDS = 5.0
_PATIENCE = 5.0
"""How much longer than an action's own timeout its answer is waited for."""

TOKEN_VARIABLE = "MYSQLRAFT_ADMIN_TOKEN"
"""The environment variable that holds the token where no --config names another."""

_UNAUTHORIZED = (
    f"the daemon wants a token: give --config with admin.token_file or admin.token_env, or set {TOKEN_VARIABLE}"
)
_WRONG_TOKEN = "the daemon wants another token than that of admin.token_file or admin.token_env: was it reloaded?"
_STATUS = {400: EXIT_USAGE, 503: EXIT_UNREACHABLE}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--config or --admin: which daemon."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--config", metavar="FILE", type=Path, help="the site's YAML file")
    where.add_argument("--admin", metavar="HOST:PORT", type=_address, help="the daemon's admin address")


def add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, default=10.0, help="how long to wait for the outcome (10)"
    )


def daemon(args: argparse.Namespace) -> Daemon:
    """The daemon that the command line names. Raises ConfigError."""
    if args.config:
        return Daemon(config.load(args.config).admin)
    token = TOKEN_VARIABLE if TOKEN_VARIABLE in os.environ else None
    return Daemon(AdminSettings(listen=args.admin or AdminSettings().listen, token_env=token))


class Daemon:
    """The admin API behind one address."""

    def __init__(self, settings: AdminSettings) -> None:
        """Reads the token and the certificates. Raises ConfigError."""
        self.address = settings.listen
        self._token = settings.read_token()
        self._tls = None if settings.tls is None else access.client(settings.tls)

    def get(self, path: str) -> Any:
        """A JSON page. Raises CommandError."""
        return self._open(self._request(path), _PAGE_SECONDS)

    def post(self, path: str, wish: Mapping[str, Any], seconds: float) -> Any:
        """What an action answers within so many seconds. Raises CommandError."""
        body = json.dumps({**wish, "timeout": seconds}).encode()
        return self._open(self._request(path, body), seconds + _PATIENCE)

    def _request(self, path: str, body: bytes | None = None) -> urllib.request.Request:
        scheme = "http" if self._tls is None else "https"
        headers = {} if body is None else {"Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = access.SCHEME + self._token
        return urllib.request.Request(f"{scheme}://{self.address}{path}", body, headers)

    def _open(self, request: urllib.request.Request, seconds: float) -> Any:
        try:
            # A proxy of the environment has no business with this.
            handlers = [] if self._tls is None else [urllib.request.HTTPSHandler(context=self._tls)]
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), *handlers)
            with opener.open(request, timeout=seconds) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.UNAUTHORIZED:
                raise CommandError(_UNAUTHORIZED if self._token is None else _WRONG_TOKEN) from None
            raise CommandError(_refusal(error), _STATUS.get(error.code, EXIT_NO)) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise CommandError(
                f"the daemon at {self.address} does not answer ({reason}); is it running? (mysqlraft run, or its log)",
                EXIT_UNREACHABLE,
            ) from None


def _refusal(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace").strip()
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the daemon says: {text or error.reason}"


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except Refused as refused:
        raise argparse.ArgumentTypeError(f"{text!r} is not {refused}") from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to 600")
    return seconds
