"""How the verbs ask the site's daemon, by its admin API."""

from __future__ import annotations

import argparse
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mysqlraft import config
from mysqlraft.cli.errors import EXIT_NO, EXIT_UNREACHABLE, EXIT_USAGE, CommandError
from mysqlraft.config import AdminSettings
from mysqlraft.keys import Address, Refused

_PAGE_SECONDS = 5.0
_PATIENCE = 5.0
"""How much longer than an action's own timeout its answer is waited for."""

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
    """The daemon that the command line names."""
    return Daemon(args.admin or (config.load(args.config).admin if args.config else AdminSettings()).listen)


class Daemon:
    """The admin API behind one address."""

    def __init__(self, address: Address) -> None:
        self.address = address

    def get(self, path: str) -> Any:
        """A JSON page. Raises CommandError."""
        return self._open(urllib.request.Request(f"http://{self.address}{path}"), _PAGE_SECONDS)

    def post(self, path: str, wish: Mapping[str, Any], seconds: float) -> Any:
        """What an action answers within so many seconds. Raises CommandError."""
        body = json.dumps({**wish, "timeout": seconds}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self.address}{path}", body, headers)
        return self._open(request, seconds + _PATIENCE)

    def _open(self, request: urllib.request.Request, seconds: float) -> Any:
        try:
            # A proxy of the environment has no business with loopback.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(request, timeout=seconds) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
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
