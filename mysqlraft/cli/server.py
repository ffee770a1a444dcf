"""What the verbs that talk to the site's server share."""

from __future__ import annotations

from typing import Any

import pymysql
from pymysql.connections import Connection

from mysqlraft.cli.errors import EXIT_UNREACHABLE, CommandError
from mysqlraft.config import MysqlSettings
from mysqlraft.mysql import account, opening

_ACCESS_DENIED = (1044, 1045, 1698)


def connect(settings: MysqlSettings) -> Connection[Any]:
    """A connection of the daemon's account.

    Raises:
        CommandError: there is none to be had; it says what to do.
    """
    try:
        return account.connect(settings, read_timeout=opening.SURVEY_SECONDS)
    except pymysql.err.OperationalError as error:
        code, message = error.args[0], error.args[-1]
        hint = "is it running, and is this its address?"
        if code in _ACCESS_DENIED:
            hint = "is the password right? `mysqlraft check --grants mysql|mariadb` prints how to create the account"
        raise CommandError(
            f"the server at {account.where(settings)} cannot be asked: {message}; {hint}", EXIT_UNREACHABLE
        ) from None
