"""How log lines look, by where they go."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

PROGRAM = """
import logging, sys
from mysqlraft import logs
from mysqlraft.config import LogSettings
logs.configure(LogSettings(level="info", format=sys.argv[1]))
logger = logging.getLogger("mysqlraft.replication.capture")
logger.debug("not shown")
logger.warning("position lost file=%s", "binlog.000003")
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("failed")
"""


def printed(form: str, journal: bool) -> list[str]:
    environment = {**os.environ}
    environment.pop("JOURNAL_STREAM", None)
    reading, writing = os.pipe()
    if journal:
        status = os.fstat(writing)
        environment["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
    with open(reading, encoding="utf-8") as output:
        try:
            subprocess.run([sys.executable, "-c", PROGRAM, form], stderr=writing, env=environment, check=True)
        finally:
            os.close(writing)
        return output.read().splitlines()


def test_text_begins_with_the_time() -> None:
    warning, error = printed("text", journal=False)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warning replication.capture: position lost file=binlog.000003", warning
    )
    assert " error replication.capture: failed | Traceback" in error
    assert "ZeroDivisionError" in error, "a traceback stays in the one line of its message"


def test_the_journal_gets_priorities_and_no_time() -> None:
    warning, error = printed("text", journal=True)
    assert warning == "<4>replication.capture: position lost file=binlog.000003"
    assert error.startswith("<3>replication.capture: failed | Traceback")


@pytest.mark.parametrize("journal", [False, True])
def test_json(journal: bool) -> None:
    warning, error = map(json.loads, printed("json", journal))
    assert (warning["level"], warning["message"]) == ("warning", "position lost file=binlog.000003")
    assert "ZeroDivisionError" in error["traceback"]
