"""What can go wrong between the server's binlog and capture."""

from __future__ import annotations


class BinlogError(Exception):
    """The binlog holds, or the connection brought, what cannot be carried on with. Trying again does not help."""


class PositionLost(BinlogError):
    """The server no longer has the binlog from the position on that was asked for."""


class ConnectionLost(Exception):
    """The dump connection ended, or fell silent. Connect again at the end of the last complete transaction."""
