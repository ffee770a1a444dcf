"""How the daemon's two processes print: one line a message, to standard error.

Under the journal a line begins with its priority, ``<6>``, and has no time: the journal has a better one. Elsewhere it
begins with the time (UTC) and the level. Messages say what happened and then name values, key=value.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time

from mysqlraft.config import LogSettings

# syslog's numbers, as journald reads them
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))


def configure(settings: LogSettings) -> None:
    """Makes the root logger print as ``settings`` say; may be called again after a reload."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.format == "json":
        handler.setFormatter(_Json())
    elif _is_journal(sys.stderr.fileno()):
        handler.setFormatter(_Journal())
    else:
        handler.setFormatter(_Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    # asyncio's debug messages name its selector and nothing else.
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _is_journal(descriptor: int) -> bool:
    """Whether the descriptor is the stream that systemd connected to the journal (JOURNAL_STREAM, systemd.exec(5))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def _source(record: logging.LogRecord) -> str:
    return record.name.removeprefix("mysqlraft.")


def _message(record: logging.LogRecord) -> str:
    """The message, with the traceback if there is one, in one line."""
    text = record.getMessage()
    if record.exc_info:
        text += " | " + logging.Formatter().formatException(record.exc_info)
    return text.replace("\n", "\\n")


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{_time(record)} {record.levelname.lower()} {_source(record)}: {_message(record)}"


class _Journal(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return f"<{priority}>{_source(record)}: {_message(record)}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "source": _source(record),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
