"""What can go wrong between the server's binlog and capture."""

from __future__ import annotations


class BinlogError(Exception):
    """The binlog holds, or the connection brought, what cannot be carried on with. Trying again does not help."""


class BinlogIncomplete(BinlogError):
    """The binlog itself is not whole: there is no transaction in it that could be left out instead."""


class TornFile(BinlogIncomplete):
    """A file ends in the middle of an event, because the server crashed while it wrote it."""

    def __init__(self, why: str, file: str) -> None:
        super().__init__(why)
        self.file = file


class PositionLost(BinlogIncomplete):
    """The server no longer has the binlog from the position on that was asked for, or not all of it."""


class ConnectionLost(Exception):
    """The dump connection ended, or fell silent. Connect again at the end of the last complete transaction."""
