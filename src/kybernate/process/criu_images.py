"""Whether CRIU's image files are well formed and complete, without CRIU and without reading the pages.

An image is two numbers (its kind) and then entries, each a length and a protobuf message. A cut-off file ends inside an
entry; a missing page image leaves the page map's sum unanswered. Contents are beyond this check.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from kybernate.model.errors import BadInput

_COMMON, _SERVICE = 0x54564319, 0x55105940
_PSTREE, _PAGEMAP = 0x50273030, 0x56084025
_PAGE_BYTES = 4096
_PRESENT = 4
_LARGEST_ENTRY = 64 << 20
"""Bytes. The largest entries CRIU writes (a process's map of its memory) have some MB."""
_RAW = ("pages-", "ghost-file-", "tcp-stream-", "pipes-data", "fifo-data", "sk-queues", "bpfmap-data", "ghost-chunk-")
"""Their entries are followed by data of a length that only the entry says; their sizes are in our own record."""


def check(directory: Path, *, root: int) -> None:
    """Check all images of a directory. `root`: the pid of the tree's first process, as dumped.

    Raises:
        BadInput: something is missing or cut off; the message names the file.
    """
    for path in sorted(directory.glob("*.img")):
        if not path.name.startswith(_RAW):
            for _ in entries(path):
                pass
    for name in ("inventory.img", "files.img"):
        _require(directory / name)
    processes = [_fields(entry) for entry in entries(directory / "pstree.img", kind=_PSTREE)]
    if root not in (_one(process, 1) for process in processes):
        raise _damaged(directory / "pstree.img", f"process {root} is not in it")
    for process in processes:
        for thread in _threads(process):
            _require(directory / f"core-{thread}.img")
    _check_pages(directory)


def processes(directory: Path) -> list[int]:
    """Pids of all dumped processes and threads. Raises BadInput."""
    found = [_fields(entry) for entry in entries(directory / "pstree.img", kind=_PSTREE)]
    return sorted({thread for process in found for thread in _threads(process)})


def _threads(process: dict[int, list[int | bytes]]) -> list[int]:
    """Of an entry of the process tree. A zombie's single entry is no number that means anything."""
    threads = _integers(process.get(5, []))
    return threads if len(threads) > 1 else [_one(process, 1)]


def entries(path: Path, *, kind: int | None = None) -> Iterator[bytes]:
    """The messages of an image file.

    Raises:
        BadInput: missing, cut off, or not of that kind.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
            # inventory.img has one number only.
            if head == struct.pack("<I", _COMMON) or head == struct.pack("<I", _SERVICE):
                head = file.read(4)
            if len(head) < 4 or not any(head) or (kind is not None and head != struct.pack("<I", kind)):
                raise _damaged(path, "it doesn't begin as an image of CRIU")
            while length := file.read(4):
                size = int.from_bytes(length, "little")
                if len(length) < 4 or size > _LARGEST_ENTRY:
                    raise _damaged(path, "an entry's length makes no sense")
                entry = file.read(size)
                if len(entry) < size:
                    raise _damaged(path, "it is cut off")
                yield entry
    except FileNotFoundError as e:
        raise _damaged(path, "it is missing") from e


def _check_pages(directory: Path) -> None:
    wanted: dict[int, int] = {}
    for path in sorted(directory.glob("pagemap-*.img")):
        numbers = entries(path, kind=_PAGEMAP)
        head = _fields(next(numbers, b""))
        if 1 not in head:
            raise _damaged(path, "it names no page image")
        pages = 0
        for entry in numbers:
            found = _fields(entry)
            if 4 not in found or _one(found, 4) & _PRESENT:
                pages += _one(found, 5 if 5 in found else 2)
        identity = _one(head, 1)
        wanted[identity] = wanted.get(identity, 0) + pages
    for identity, pages in wanted.items():
        path = directory / f"pages-{identity}.img"
        if pages == 0 and not path.exists():
            continue
        _require(path)
        if (size := path.stat().st_size) != pages * _PAGE_BYTES:
            raise _damaged(path, f"it has {size} bytes, its map says {pages * _PAGE_BYTES}")


def _fields(message: bytes) -> dict[int, list[int | bytes]]:
    """A protobuf message's fields by number, without knowing its type."""
    found: dict[int, list[int | bytes]] = {}
    position = 0
    try:
        while position < len(message):
            key, position = _varint(message, position)
            value: int | bytes
            match key & 7:
                case 0:
                    value, position = _varint(message, position)
                case 1:
                    value, position = message[position : position + 8], position + 8
                case 2:
                    length, position = _varint(message, position)
                    value, position = message[position : position + length], position + length
                case 5:
                    value, position = message[position : position + 4], position + 4
                case other:
                    raise BadInput(f"a message of CRIU's has a field of unknown kind {other}")
            found.setdefault(key >> 3, []).append(value)
    except IndexError:
        raise BadInput("a message of CRIU's is cut off") from None
    return found


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise BadInput("a number in a message of CRIU's is too long")


def _one(fields: dict[int, list[int | bytes]], number: int) -> int:
    values = _integers(fields.get(number, []))
    if not values:
        raise BadInput(f"a message of CRIU's lacks field {number}")
    return values[-1]


def _integers(values: list[int | bytes]) -> list[int]:
    """Of a repeated field, packed or not."""
    found: list[int] = []
    for value in values:
        if isinstance(value, int):
            found.append(value)
            continue
        position = 0
        while position < len(value):
            number, position = _varint(value, position)
            found.append(number)
    return found


def _require(path: Path) -> None:
    if not path.is_file():
        raise _damaged(path, "it is missing")


def _damaged(path: Path, why: str) -> BadInput:
    return BadInput(f"the dump in {path.parent} is damaged: {path.name}: {why}")
