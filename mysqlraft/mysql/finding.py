"""What preflight finds: one thing about the server that should be otherwise, and the SQL that makes it so."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Severity(StrEnum):
    ERROR = "error"
    """Replication does not start, or this site's writes are held back: it would fail, or sites would diverge."""
    WARNING = "warning"
    """Replication works, but not as well or as safely as it could."""
    INFO = "info"
    """Worth knowing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """``sql`` are complete statements, without semicolons, in the order in which to run them; an account that may
    administer the server runs them. ``options`` are lines for the server's [mysqld] section; ``restart`` says that
    they are the only way.
    """

    check: str
    severity: Severity
    what: str
    why: str
    sql: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    restart: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "severity": self.severity.value,
            "what": self.what,
            "why": self.why,
            "sql": list(self.sql),
            "options": list(self.options),
            "restart": self.restart,
        }


def identifier(*names: str) -> str:
    """Names quoted for SQL: identifier("a", "b") is `a`.`b`."""
    return ".".join("`" + name.replace("`", "``") + "`" for name in names)


def literal(text: str) -> str:
    """A text quoted for SQL, whatever NO_BACKSLASH_ESCAPES says; it must not hold backslashes of its own."""
    return "'" + text.replace("'", "''") + "'"
