"""The dump connection: this process as one more replica of the site's server.

PyMySQL logs in; from there on the socket is ours. Packets are cut out of large reads, many events a system call:
PyMySQL's own packet reader costs several times what the rest of capture does.

An event comes out as bytes: the 19-byte header and the body, without its checksum, which has been verified. An event
too large for one packet (16 MiB) is put together, except a compressed transaction: that comes as `LargeEvent`, whose
body is read while it is used, so that a transaction larger than memory passes through.

A server that crashed while it wrote an event may leave that in its file. MySQL cuts it off when it starts again;
MariaDB leaves it there, and ends the dump at it with an error. It is the end of that file: the next file is asked for.

Sources of facts: MySQL's client/server protocol documentation (COM_REGISTER_SLAVE, COM_BINLOG_DUMP,
COM_BINLOG_DUMP_GTID) and MariaDB's knowledge base (replication protocol, ``@slave_connect_state``).
"""

from __future__ import annotations

import re
import select
import socket
import struct
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any
from zlib import crc32

from pymysql.connections import Connection

from mysqlraft.binlog.errors import BinlogError, ConnectionLost, PositionLost, TornFile
from mysqlraft.binlog.events import EventType, is_begin
from mysqlraft.binlog.gtid import encode_gtid_set
from mysqlraft.mysql import opening

HEARTBEAT = 5.0
"""Seconds after which an idle server sends a heartbeat; three times as long without any byte, and it is gone."""

READ_SIZE = 1 << 18
MAX_OFFSET = 0xFFFFFFFF
"""The last place in a file that a server can be asked for."""
_LARGEST_PACKET = 0xFFFFFF
_COM_BINLOG_DUMP = 0x12
_COM_REGISTER_REPLICA = 0x15
_COM_BINLOG_DUMP_GTID = 0x1E
_CHECKSUM = 4
_RESIDUE = 0x2144DF1C
_LENGTH = struct.Struct("<I")
_PACKET = struct.Struct("<IB4xB")
"""A packet with an event: its length (and number), 0, the event's type."""
_FORMAT_DESCRIPTION, _ROTATE = int(EventType.FORMAT_DESCRIPTION), int(EventType.ROTATE)
_QUERY = int(EventType.QUERY)
_HEADER = 19
_SKIMMED = frozenset(
    map(int, (EventType.QUERY, EventType.MARIADB_QUERY_COMPRESSED, EventType.ROTATE, EventType.FORMAT_DESCRIPTION))
)
"""A reader of statements needs these: they are statements, or say how the stream goes on."""

# Of the many reasons for error 1236, these say that the position is gone; the server's words, in lower case.
_LOST = (
    "could not find first log file",
    "purged",
    "start replication from position >",
    "start replication from impossible position",
    "more gtids than",
    "not in the master's binlog",
    "not in the source's binlog",
    "missing from the master",
    "impossible position",
    "could not find gtid state",
    "the binlog on the master is missing the gtid",
    "alternate future",
)


_TORN = re.compile(r"truncated in the middle of event.* the last event read from '(?:[^']*/)?([^'/]+)'", re.DOTALL)
"""Error 1236 of a file that ends in the middle of an event; the file's name."""


_OTHER_MODE = re.compile(r"GTID_MODE = (ON|OFF)")
"""Error 1236 of what was committed under the other mode, before the server was restarted under this one."""


class LargeEvent:
    """An event that arrives in several packets. Read it to its end before the next event."""

    def __init__(self, reader: DumpConnection, header: bytes, first: bytes, checksummed: bool) -> None:
        self.header = header
        self._reader = reader
        self._first = first
        self._checksummed = checksummed

    def chunks(self) -> Iterator[bytes]:
        """The body, piece by piece, without its checksum."""
        checksum = crc32(self.header)
        held = self._first
        for chunk in self._reader.rest_of_event():
            if self._checksummed:
                held += chunk
                chunk, held = held[:-_CHECKSUM], held[-_CHECKSUM:]
            else:
                chunk, held = held + chunk, b""
            checksum = crc32(chunk, checksum)
            yield chunk
        if self._checksummed and held != checksum.to_bytes(_CHECKSUM, "little"):
            raise BinlogError("a binlog event does not match its checksum")


class DumpConnection:
    """One dump connection, from login to its end. Not for use by several threads, except `abort`."""

    def __init__(
        self, connect: Mapping[str, Any], server_id: int, *, heartbeat: float = HEARTBEAT, server: str = ""
    ) -> None:
        """Logs in. ``connect``: keyword arguments of `opening.connect`. ``server``: which one it has to be, as
        `opening.WHICH_SERVER` has it: if it is another one, asking for a place is answered by ConnectionLost.

        Raises:
            pymysql.err.MySQLError, OSError: as PyMySQL does.
        """
        self.server_id = server_id
        self._connect = {**connect, "autocommit": True}
        self._heartbeat = heartbeat
        self._aborted = False
        self._server = server
        self._ended: BinlogError | ConnectionLost | None = None
        """The error that ended this dump. It is raised once the events before it have been given out."""
        self._peeked: deque[list[bytes | LargeEvent]] = deque()
        """What `peek` has read, for `batch`."""
        self._open()

    def _open(self) -> None:
        self._login: Connection[Any] = opening.connect(**self._connect)
        self.mariadb = "MariaDB" in str(getattr(self._login, "server_version", ""))
        self._socket: socket.socket = self._login._sock  # type: ignore[attr-defined]
        self._descriptor = self._socket.fileno()
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)
        self._buffer = b""
        self._at = 0
        self._checksummed = False
        self._continued = False

    def close(self) -> None:
        """Ends the connection."""
        with suppress(OSError):
            self._socket.close()
        self._login._force_close()  # type: ignore[attr-defined]

    def abort(self) -> None:
        """Makes a reader in another thread stop waiting, with ConnectionLost."""
        self._aborted = True
        with suppress(OSError):
            # Not the TLS socket's own method: that one lets a reader go on with what is still encrypted.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def start_at(self, file: str, offset: int) -> None:
        """Asks for the binlog from a place in a file on.

        Raises:
            PositionLost: later, by `batch`: the server answers there.
        """
        self._prepare({})
        if offset > MAX_OFFSET:
            raise PositionLost(f"{file}:{offset}: no server can be asked for a position beyond 4 GiB of a file")
        self._command(struct.pack("<BIHI", _COM_BINLOG_DUMP, offset, 0, self.server_id) + file.encode())

    def start_after(self, gtids: str) -> None:
        """Asks for everything that is not in a set of GTIDs (MariaDB: after the last of each domain)."""
        if self.mariadb:
            self._prepare(
                {"slave_connect_state": gtids, "slave_gtid_strict_mode": 1, "slave_gtid_ignore_duplicates": 0}
            )
            self._command(struct.pack("<BIHI", _COM_BINLOG_DUMP, 4, 0, self.server_id))
            return
        self._prepare({})
        encoded = encode_gtid_set(gtids)
        self._command(struct.pack("<BHIIQI", _COM_BINLOG_DUMP_GTID, 4, self.server_id, 0, 4, len(encoded)) + encoded)

    def _prepare(self, extra: dict[str, str | int]) -> None:
        """Session variables that tell the server what this replica understands; then the registration."""
        identity = str(uuid.uuid5(uuid.NAMESPACE_OID, f"mysqlraft-{self.server_id}"))
        variables: dict[str, str | int] = {"master_heartbeat_period": int(self._heartbeat * 1e9)}
        if self.mariadb:
            variables["mariadb_slave_capability"] = 4
        else:
            # By the identity a server recognises, and ends, an earlier connection of ours that it still holds open.
            variables |= {
                "source_heartbeat_period": int(self._heartbeat * 1e9),
                "slave_uuid": identity,
                "replica_uuid": identity,
            }
        with self._login.cursor() as cursor:
            if self._server:
                cursor.execute(opening.WHICH_SERVER)
                if cursor.fetchone() != (self._server,):
                    raise ConnectionLost(opening.ANOTHER_SERVER)
            for name, value in (variables | extra).items():
                cursor.execute(f"SET @{name} = %s", (value,))
            for name in ("master_binlog_checksum", "source_binlog_checksum"):
                cursor.execute(f"SET @{name} = @@global.binlog_checksum")
        self._command(struct.pack("<BIBBBHII", _COM_REGISTER_REPLICA, self.server_id, 0, 0, 0, 0, 0, 0))
        self._login._read_packet()  # type: ignore[no-untyped-call]

    def _command(self, packet: bytes) -> None:
        self._socket.settimeout(30.0)
        self._socket.sendall(len(packet).to_bytes(3, "little") + b"\0" + packet)
        self._login._next_seq_id = 1  # type: ignore[attr-defined]

    # Reading

    def ready(self) -> bool:
        """Whether more has arrived already."""
        return self.wait(0)

    def peek(self, see: Callable[[bytes], bool], most: int) -> None:
        """Reads ahead: ``see`` gets what `skim` would give, and `batch` gives all of it afterwards. Ends when ``see``
        returns False, at a `LargeEvent`, and when ``most`` bytes are held.

        Raises:
            ConnectionLost: the connection ended, or was silent. `batch` reports whatever else is wrong.
        """
        held, wanted = 0, _SKIMMED
        while held < most:
            events: list[bytes | LargeEvent] = []
            try:
                self._cut(events)
            except (BinlogError, ConnectionLost) as error:
                self._ended = error
            if events:
                self._peeked.append(events)
            plain = [event for event in events if isinstance(event, bytes)]
            held += sum(map(len, plain))
            shown = [e for e in plain[:-1] if e[4] in wanted and not (e[4] == _QUERY and is_begin(e))] + plain[-1:]
            if self._ended is not None or len(plain) < len(events) or not all(map(see, shown)):
                return
            self._fill()

    def wait(self, seconds: float) -> bool:
        """Waits until something arrives, at most so long; whether it did."""
        if self._peeked:
            return True
        pending = getattr(self._socket, "pending", None)  # TLS: decrypted, but not read yet
        return bool((pending is not None and pending()) or self._poll.poll(seconds * 1000))

    def batch(self) -> list[bytes | LargeEvent]:
        """The events that have arrived, at least one; waits for it. A `LargeEvent` is always the last of its batch.

        Raises:
            ConnectionLost: the connection ended, or was silent for three heartbeats.
            PositionLost: the server does not have the position.
            BinlogError: any other error that the server reports, or a checksum that does not match.
        """
        return self._peeked.popleft() if self._peeked else self._arrived(self._cut)

    def skim(self) -> list[bytes | LargeEvent]:
        """As `batch`, for a reader of statements. Of the events between them (rows, BEGIN) only the last that has
        arrived is there, for its place; their checksums are not compared: capture reads them again, by `batch`."""
        return self._arrived(self._skim)

    def _arrived(self, cut: Callable[[list[bytes | LargeEvent]], None]) -> list[bytes | LargeEvent]:
        if self._continued and self._ended is None:
            raise BinlogError("a large event was not read to its end")
        events: list[bytes | LargeEvent] = []
        while not events:
            if isinstance(self._ended, TornFile):
                self._go_on_behind(self._ended)
            elif self._ended is not None:
                raise self._ended
            try:
                cut(events)
            except (BinlogError, ConnectionLost) as error:
                self._ended = error
                continue
            if not events:
                self._fill()
        return events

    def _go_on_behind(self, torn: TornFile) -> None:
        """Asks for the file after the one that ends in the middle of an event, if there is one."""
        self.close()
        self._open()
        if self._aborted:
            raise ConnectionLost("asked to stop")
        with self._login.cursor() as cursor:
            cursor.execute("SHOW BINARY LOGS")
            files = [str(row[0]) for row in cursor.fetchall()]
        if torn.file not in files[:-1]:
            raise BinlogError(str(torn))
        self._ended = None
        self.start_at(files[files.index(torn.file) + 1], 4)

    def _cut(self, events: list[bytes | LargeEvent], stop: int = sys.maxsize) -> None:
        """Takes all complete packets out of the buffer, or those that begin before ``stop`` in it."""
        buffer, at, size = self._buffer, self._at, min(stop, len(self._buffer))
        checksummed = self._checksummed
        unpack_length, append = _LENGTH.unpack_from, events.append
        while size - at > 4:
            length = unpack_length(buffer, at)[0] & 0xFFFFFF
            end = at + 4 + length
            if end > size:
                break
            if buffer[at + 4]:
                self._refuse(buffer[at + 4 : end])
            if length == _LARGEST_PACKET:
                self._buffer, self._at = buffer, end
                append(self._large(buffer[at + 5 : end]))
                if self._continued:
                    return
                buffer, at, size = self._buffer, self._at, len(self._buffer)
                continue
            event = buffer[at + 5 : end]
            at = end
            if len(event) < _HEADER:
                raise BinlogError(f"a binlog event of {len(event)} bytes is too short for its header")
            kind = event[4]
            if kind == _FORMAT_DESCRIPTION:
                # Its own checksum is there whenever it names an algorithm, in the byte before it.
                checksummed = self._checksummed = event[-5] == 1 and _matches(event)
                event = event[:-4] if checksummed else event
            elif checksummed:
                if crc32(event) != _RESIDUE:
                    raise BinlogError(f"a binlog event of type {kind} does not match its checksum")
                event = event[:-4]
            elif kind == _ROTATE and _matches(event):
                # The one that opens the stream comes before any format description.
                event = event[:-4]
            append(event)
        self._buffer, self._at = buffer, at

    def _skim(self, events: list[bytes | LargeEvent]) -> None:
        """Passes over packets that a reader of statements does not need, or cuts the next one that it does."""
        buffer, at, size = self._buffer, self._at, len(self._buffer)
        unpack, wanted, large = _PACKET.unpack_from, _SKIMMED, _LARGEST_PACKET
        tail = _CHECKSUM if self._checksummed else 0
        passed, end, last = -1, size, size - 4 - _HEADER
        while at < last:
            length, status, kind = unpack(buffer, at)
            length &= 0xFFFFFF
            end = at + 4 + length
            if end > size or status or not _HEADER < length < large:
                break
            if kind in wanted and not (kind == _QUERY and is_begin(buffer[at + 5 : end - tail])):
                break
            passed, at = at, end
        self._at = at
        if passed >= 0:
            events.append(buffer[passed + 5 : at - tail])
        else:
            self._cut(events, end)

    def _large(self, first: bytes) -> bytes | LargeEvent:
        self._continued = True
        if first[4] == EventType.TRANSACTION_PAYLOAD:
            return LargeEvent(self, first[:_HEADER], first[_HEADER:], self._checksummed)
        # It may be a large row, which is to be in memory once.
        event = BytesIO()
        size = event.write(first)
        checksum = crc32(first)
        for chunk in self.rest_of_event():
            size += event.write(chunk)
            checksum = crc32(chunk, checksum)
        if self._checksummed:
            if checksum != _RESIDUE:
                raise BinlogError(f"a binlog event of type {first[4]} does not match its checksum")
            event.truncate(size - _CHECKSUM)
        return event.getvalue()

    def rest_of_event(self) -> Iterator[bytes]:
        """The further packets of the event that the last packet began."""
        length = _LARGEST_PACKET
        while length == _LARGEST_PACKET:
            while len(self._buffer) - self._at < 4:
                self._fill()
            length = int.from_bytes(self._buffer[self._at : self._at + 3], "little")
            self._at += 4
            left = length
            while left:
                if self._at == len(self._buffer):
                    self._fill()
                chunk = self._buffer[self._at : self._at + left]
                self._at += len(chunk)
                left -= len(chunk)
                if length < _LARGEST_PACKET and not left:
                    self._continued = False
                yield chunk
        self._continued = False

    def _fill(self) -> None:
        """Waits for more bytes. A packet that is known to be large is read in one piece."""
        rest = self._buffer[self._at :]
        wanted = READ_SIZE
        if len(rest) > 4:
            wanted = max(wanted, int.from_bytes(rest[:3], "little") + 4 - len(rest)) if not self._continued else wanted
        self._socket.settimeout(3 * self._heartbeat)
        try:
            if wanted > READ_SIZE:
                whole = bytearray(len(rest) + wanted)
                whole[: len(rest)] = rest
                filled, view = len(rest), memoryview(whole)
                while filled < len(whole):
                    count = self._socket.recv_into(view[filled:])
                    if not count:
                        raise ConnectionLost("the server closed the dump connection")
                    filled += count
                self._buffer, self._at = bytes(whole), 0
                return
            chunk = self._socket.recv(READ_SIZE)
        except TimeoutError:
            raise ConnectionLost(
                f"the server sent nothing for {3 * self._heartbeat:g} s, not even a heartbeat"
            ) from None
        except OSError as error:
            raise ConnectionLost(f"the dump connection broke: {error}") from None
        if not chunk:
            raise ConnectionLost("the server closed the dump connection")
        self._buffer, self._at = rest + chunk if rest else chunk, 0

    def _refuse(self, packet: bytes) -> None:
        if packet[0] == 0xFE and len(packet) < 9:
            raise ConnectionLost("the server ended the dump")
        if packet[0] != 0xFF or len(packet) < 3:
            raise BinlogError(f"a packet of {len(packet)} bytes with status {packet[0]:#x} where an event should be")
        code = int.from_bytes(packet[1:3], "little")
        text = packet[9:] if packet[3:4] == b"#" else packet[3:]
        message = text.decode("utf-8", "replace")
        if code == 1236 and (torn := _TORN.search(message)):
            raise TornFile(f"the server refuses the dump: error {code}: {message}", torn[1])
        if code == 1236 and any(words in message.lower() for words in _LOST):
            raise PositionLost(message)
        if code in (1053, 1317, 2013):  # shutdown, killed
            raise ConnectionLost(message)
        if code == 1236 and "same server_uuid" in message:
            raise ConnectionLost(message)
        if code == 1236 and (mode := _OTHER_MODE.search(message)):
            raise ConnectionLost(
                f"{message} SET GLOBAL gtid_mode = {mode[1]}_PERMISSIVE until this site's daemon has read on"
            )
        raise BinlogError(f"the server refuses the dump: error {code}: {message}")


def identity(event: bytes) -> str:
    """What tells a binlog file from another one of the same name, from its format description: who made it, when."""
    return f"{int.from_bytes(event[5:9], 'little')}-{int.from_bytes(event[:4], 'little')}"


def file_identity(open_dump: Callable[[], DumpConnection], file: str) -> str:
    """The identity of a file that the server has, asked for by a dump connection of its own.

    Raises:
        PositionLost, ConnectionLost, BinlogError: as `DumpConnection.batch` does.
        pymysql.err.MySQLError, OSError: as PyMySQL does.
    """
    dump = open_dump()
    try:
        dump.start_at(file, 4)
        while True:
            for event in dump.batch():
                if isinstance(event, bytes) and event[4] == _FORMAT_DESCRIPTION:
                    return identity(event)
    finally:
        dump.close()


def _matches(event: bytes) -> bool:
    """Whether the last four bytes are the checksum of the others: then the checksum of all is a constant."""
    return crc32(event) == _RESIDUE
