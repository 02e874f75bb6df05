"""The agent's side of the protocol in native/preload/protocol.h. Pure packing; no sockets, no CUDA.

Limits: a packet holds at most `RECORDS_MAX` records; `split` and `Message.more` handle longer lists.
"""

from __future__ import annotations

import enum
import functools
import operator
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kybernate.model.errors import BadInput
from kybernate.model.types import ExtentId

MAGIC = 0x3142594B
VERSION = 1
RECORDS_MAX = 128
REASON_MAX = 232
ANSWER = 64

_HEAD = struct.Struct("<IHHiIIIQ16s232s")
_RECORD = struct.Struct("<QQQ16sII")
PACKET_MAX = _HEAD.size + RECORDS_MAX * _RECORD.size


class Type(enum.IntEnum):
    HELLO = 1
    ALLOCATE = 2
    FREE = 3
    WAIT = 4
    STATUS = 16
    QUIESCE = 17
    RELEASE = 18
    DISCARD = 19
    MAP = 20
    OPEN = 21
    EXTENTS = 22
    REMAP = 23
    HOLD = 25
    SHARE = 24
    """Between processes of one workload; never sent by or to the agent."""


class Status(enum.IntEnum):
    OK = 0
    BUSY = 1
    UNSUPPORTED = 2
    WAIT_FIRST = 3
    OUT_OF_MEMORY = 4
    BAD_REQUEST = 5
    FAILED = 6


class ProcessState(enum.IntEnum):
    OPEN = 0
    QUIET = 1
    RELEASED = 2
    HELD = 3


class Flag(enum.IntFlag):
    NONE = 0
    MORE = 1
    SINGLE = 2
    RDMA = 4
    NO_FD = 8
    COMMITTED = 16
    PARTIAL = 32
    STEP = 64
    IDLE = 128


_KNOWN_FLAGS = functools.reduce(operator.or_, Flag, Flag.NONE).value
"""Bits of a newer peer are ignored, not refused."""


@dataclass(frozen=True, slots=True)
class Record:
    """One extent on the wire. `size` in bytes; `gpu` is the 16 raw bytes of CUuuid."""

    id: ExtentId
    address: int
    size: int
    gpu: bytes = bytes(16)
    flags: Flag = Flag.NONE


@dataclass(frozen=True, slots=True)
class Message:
    type: Type
    answer: bool = False
    status: Status = Status.OK
    flags: Flag = Flag.NONE
    argument: int = 0
    gpu: bytes = bytes(16)
    reason: str = ""
    records: tuple[Record, ...] = ()

    @property
    def more(self) -> bool:
        return bool(self.flags & Flag.MORE)


def pack(message: Message) -> bytes:
    """One packet. Raises ValueError for more than RECORDS_MAX records (a bug of the caller)."""
    if len(message.records) > RECORDS_MAX:
        raise ValueError(f"{len(message.records)} records in one packet, at most {RECORDS_MAX}")
    reason = message.reason.encode()[: REASON_MAX - 1]
    head = _HEAD.pack(
        MAGIC,
        VERSION,
        message.type + (ANSWER if message.answer else 0),
        message.status,
        len(message.records),
        message.flags,
        0,
        message.argument,
        message.gpu,
        reason,
    )
    return head + b"".join(_RECORD.pack(r.id, r.address, r.size, r.gpu, r.flags, 0) for r in message.records)


def unpack(packet: bytes) -> Message:
    """Parse one packet.

    Raises:
        BadInput: not a well-formed packet of this version.
    """
    if len(packet) < _HEAD.size:
        raise BadInput(f"packet of {len(packet)} bytes is shorter than a header of {_HEAD.size}")
    magic, version, kind, status, count, flags, _, argument, gpu, reason = _HEAD.unpack_from(packet)
    if magic != MAGIC:
        raise BadInput(f"packet does not begin with the protocol's magic (got {magic:#x})")
    if version != VERSION:
        raise BadInput(f"protocol version {version}, this side speaks {VERSION}")
    if count > RECORDS_MAX or len(packet) != _HEAD.size + count * _RECORD.size:
        raise BadInput(f"packet of {len(packet)} bytes can't hold {count} records")
    try:
        parsed_type, parsed_status = Type(kind % ANSWER), Status(status)
    except ValueError as e:
        raise BadInput(f"packet has an unknown type or status: {e}") from e
    if kind >= 2 * ANSWER:
        raise BadInput(f"packet has an unknown type {kind}")
    records = tuple(
        Record(ExtentId(i), address, size, record_gpu, Flag(record_flags & _KNOWN_FLAGS))
        for i, address, size, record_gpu, record_flags, _ in _RECORD.iter_unpack(packet[_HEAD.size :])
    )
    return Message(
        type=parsed_type,
        answer=kind >= ANSWER,
        status=parsed_status,
        flags=Flag(flags & _KNOWN_FLAGS),
        argument=argument,
        gpu=gpu,
        reason=reason.split(b"\0", 1)[0].decode("utf-8", "replace"),
        records=records,
    )


def split(records: Sequence[Record]) -> Iterator[tuple[tuple[Record, ...], bool]]:
    """Cut a list into packets' worth of records, with whether another packet follows. One empty packet for none."""
    if not records:
        yield (), False
    for start in range(0, len(records), RECORDS_MAX):
        yield tuple(records[start : start + RECORDS_MAX]), start + RECORDS_MAX < len(records)
