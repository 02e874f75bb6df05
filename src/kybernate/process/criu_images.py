"""Whether CRIU's image files are well formed and complete, without CRIU and without reading the pages.

An image is two numbers (its kind) and then entries, each a length and a protobuf message. A cut-off file ends inside an
entry; a missing page image leaves the page map's sum unanswered. Contents are beyond this check.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from kybernate.model.errors import BadInput

_COMMON, _SERVICE = 0x54564319, 0x55105940
_PSTREE, _PAGEMAP, _TCP_STREAM = 0x50273030, 0x56084025, 0x51465506
_UNSENT = 12
"""Field `unsq_len` of a TCP stream's entry."""
PAGE_BYTES = 4096
Fields = dict[int, list[int | bytes]]
"""A protobuf message by the numbers of its fields: integers, or bytes of what is longer."""
_PRESENT = 4
_LARGEST_ENTRY = 64 << 20
"""Bytes. The largest entries CRIU writes (a process's map of its memory) have some MB."""
_RAW = (
    "pages-",
    "ghost-file-",
    "tcp-stream-",
    "pipes-data",
    "fifo-data",
    "sk-queues",
    "bpfmap-data",
    "ghost-chunk-",
    "ipcns-msg-",
    "ipcns-sem-",
)
"""Their entries are followed by data of a length that only the entry says; their sizes are in our own record."""


def check(directory: Path, *, root: int, pages: Mapping[str, int] | None = None) -> None:
    """Check all images of a directory.

    Args:
        root: the pid of the tree's first process, as dumped.
        pages: bytes of each page image as CRIU reads it, by name; None: they lie there as CRIU has written them.

    Raises:
        BadInput: something is missing or cut off; the message names the file.
    """
    for path in sorted(directory.glob("*.img")):
        if not path.name.startswith(_RAW):
            for _ in entries(path):
                pass
    for name in ("inventory.img", "files.img"):
        _require(directory / name)
    processes = [fields(entry) for entry in entries(directory / "pstree.img", kind=_PSTREE)]
    if root not in (integer(process, 1) for process in processes):
        raise _damaged(directory / "pstree.img", f"process {root} is not in it")
    for process in processes:
        for thread in _threads(process):
            _require(directory / f"core-{thread}.img")
    if pages is None:
        pages = {path.name: path.stat().st_size for path in directory.glob("pages-*.img")}
    _check_pages(directory, pages)


def processes(directory: Path) -> list[int]:
    """Pids of all dumped processes and threads. Raises BadInput."""
    found = [fields(entry) for entry in entries(directory / "pstree.img", kind=_PSTREE)]
    return sorted({thread for process in found for thread in _threads(process)})


def unsent(directory: Path) -> int:
    """Bytes that the dumped TCP connections had not sent yet. Raises BadInput."""
    # One entry, and then the queues themselves.
    streams = (next(entries(path, kind=_TCP_STREAM), b"") for path in directory.glob("tcp-stream-*.img"))
    return sum(integer(fields(stream), _UNSENT, 0) for stream in streams)


def _threads(process: Fields) -> list[int]:
    """Of an entry of the process tree. A zombie's single entry is no number that means anything."""
    threads = integers(process.get(5, []))
    return threads if len(threads) > 1 else [integer(process, 1)]


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


def _check_pages(directory: Path, there: Mapping[str, int]) -> None:
    wanted: dict[int, int] = {}
    for path in sorted(directory.glob("pagemap-*.img")):
        numbers = entries(path, kind=_PAGEMAP)
        head = fields(next(numbers, b""))
        if 1 not in head:
            raise _damaged(path, "it names no page image")
        pages = 0
        for entry in numbers:
            found = fields(entry)
            if 4 not in found or integer(found, 4) & _PRESENT:
                pages += integer(found, 5 if 5 in found else 2)
        identity = integer(head, 1)
        wanted[identity] = wanted.get(identity, 0) + pages
    for identity, pages in wanted.items():
        path = directory / f"pages-{identity}.img"
        if pages == 0 and path.name not in there:
            continue
        if path.name not in there:
            raise _damaged(path, "it is missing")
        if (size := there[path.name]) != pages * PAGE_BYTES:
            raise _damaged(path, f"it has {size} bytes, its map says {pages * PAGE_BYTES}")


def fields(message: bytes) -> Fields:
    """A protobuf message's fields by number, without knowing its type. Raises BadInput: it is none."""
    found: Fields = {}
    position = 0
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
    if position > len(message):
        raise BadInput("a message of CRIU's is cut off")
    return found


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(message):
            raise BadInput("a message of CRIU's is cut off")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise BadInput("a number in a message of CRIU's is too long")


def integer(message: Fields, number: int, default: int | None = None) -> int:
    """A field that stands once. Raises BadInput where it is missing and there is no `default`."""
    values = integers(message.get(number, []))
    if values:
        return values[-1]
    if default is None:
        raise BadInput(f"a message of CRIU's lacks field {number}")
    return default


def integers(values: list[int | bytes]) -> list[int]:
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


def message(content: Fields) -> bytes:
    """The bytes of a message that has no fields of fixed length. The inverse of `fields`."""
    made = bytearray()
    for number, values in sorted(content.items()):
        for value in values:
            if isinstance(value, int):
                made += _number(number << 3) + _number(value)
            else:
                made += _number(number << 3 | 2) + _number(len(value)) + value
    return bytes(made)


def _number(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def rewrite(path: Path, messages: Iterable[bytes]) -> None:
    """Other messages for an image of a kind that has its two numbers; whole or not at all."""
    new = path.with_suffix(".new")
    with path.open("rb") as old, new.open("xb") as file:
        new.chmod(path.stat().st_mode & 0o7777)
        file.write(old.read(8))
        for content in messages:
            file.write(len(content).to_bytes(4, "little") + content)
    new.replace(path)


def _require(path: Path) -> None:
    if not path.is_file():
        raise _damaged(path, "it is missing")


def _damaged(path: Path, why: str) -> BadInput:
    return BadInput(f"the dump in {path.parent} is damaged: {path.name}: {why}")
