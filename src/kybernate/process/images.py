"""What a dump's directory holds, and whether it is whole.

    tree.json       this module's record: who it was, what it needs, every other file's size; written last
    *.img           CRIU's images
    shm.tar         the content of /dev/shm
    control.tar     the workload's own directory in its run directory
    layer-N.tar     what the workload wrote into its writable layer N
    dump.log        CRIU's own words

All are regular files without subdirectories, so a store needs no more than names and bytes.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kybernate.model.errors import BadInput, KybernateError, NotFound, Unsupported
from kybernate.process import criu_images
from kybernate.process.bulk import Zeros, holds_pages, is_bulk
from kybernate.process.records import LAUNCH

RECORD = "tree.json"
SHARED_MEMORY = "shm.tar"
CONTROL = "control.tar"
LOG = "dump.log"
FORMAT = 3
"""3: what lives would share is named. 2: pages of zeros may be left out of page images. 1 had none left out."""


def layer_archive(number: int) -> str:
    """The tar of a workload's layer, counted from 0."""
    return f"layer-{number}.tar"


@dataclass(frozen=True, slots=True)
class Launched:
    """How the workload was started; kept in its run directory (launch.json), since an agent may forget."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    network: str
    layers: tuple[str, ...]
    """Directories that it writes into layers of its own, in the order they are laid."""


@dataclass(frozen=True, slots=True)
class NeededFile:
    """A file outside of the dump that has to be there, at the same path, for a restore."""

    path: str
    bytes: int
    mtime_ns: int
    written: bool
    """Open for writing, or mapped shared and writable: clones would share it."""


class How(enum.StrEnum):
    """In what way lives would share something."""

    WRITTEN = "written"
    DELETED = "deleted"
    LOCKED = "locked"
    BOUND = "bound"


@dataclass(frozen=True, slots=True)
class Lock:
    """One lock on a file, in bytes from its beginning; `length` 0: to the end, however far that is."""

    kind: str
    exclusive: bool
    start: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class Shared:
    """One thing that lives would share, by the path that the workload knows it by."""

    path: str
    how: How
    lock: Lock | None = None

    @property
    def exclusive(self) -> bool:
        """Whether lives that come back at the same moment would be in each other's way."""
        return self.how is not How.WRITTEN


@dataclass(frozen=True, slots=True)
class TreeRecord:
    """tree.json: all that an agent which never saw the workload must know to restore it."""

    name: str
    main_inside: int
    """Pid of the workload's first process as it sees itself; it gets it again."""
    last_inside: int
    """The highest pid in use. Later ones begin above it, so that the next restore finds all of them free."""
    run_directory: str
    """Where the workload's processes know their run directory; a restore shows them its own there."""
    state_directory: str
    """What is hidden around it."""
    launched: Launched
    processes: tuple[str, ...]
    needs: tuple[NeededFile, ...]
    output_bytes: int
    """Length of output.log when the dump was made."""
    taken: float
    """Seconds since 1970."""
    criu: str
    kernel: str
    machine: str
    cpu_flags: tuple[str, ...]
    """What the processor could; programs choose their code by it when they start, and never look again."""
    files: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each of the dump's other files, as they are stored."""
    shared: tuple[Shared, ...] = ()
    """What lives that come of it would share."""
    zeros: Mapping[str, Zeros] = field(default_factory=dict)
    """What is put into its page images on the way to CRIU."""

    @property
    def bytes(self) -> int:
        """Of the whole dump but for this record."""
        return sum(self.files.values())

    def write(self, directory: Path) -> None:
        """Write tree.json whole, by a new name and a rename, for root only: it holds the workload's environment."""
        new = directory / f"{RECORD}.new"
        new.touch(mode=0o600)
        new.write_text(json.dumps({"format": FORMAT} | asdict(self), indent=1) + "\n")
        new.replace(directory / RECORD)


def read(directory: Path) -> TreeRecord:
    """The record of a dump.

    Raises:
        NotFound: there is none, so this is no dump or only half of one.
        BadInput: it is damaged, or of a newer version.
    """
    path = directory / RECORD
    try:
        raw = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as e:
        raise NotFound(f"{directory} holds no dump", hint=f"{RECORD} is missing, so it never was complete") from e
    except (ValueError, RecursionError) as e:
        raise BadInput(f"{path} is damaged: {e}") from e
    try:
        if raw["format"] not in range(1, FORMAT + 1):
            raise BadInput(f"{path} is of format {raw['format']}, this Kybernate reads up to {FORMAT}")
        return _parse(raw)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise BadInput(f"{path} is damaged: {e!r}") from e


def verify(directory: Path, *, bulk_elsewhere: bool = False) -> TreeRecord:
    """Whether a dump is whole: every file there with its size, CRIU's images well formed and not one of them missing.

    Contents are not hashed; the store does that. Takes milliseconds: page images are measured, not read.

    Args:
        bulk_elsewhere: what is large (`bulk.is_bulk`) isn't looked for here; its sizes are as the record says.

    Raises:
        NotFound: no dump.
        BadInput: damaged; the message names the file.
    """
    record = read(directory)
    for name, size in record.files.items():
        if bulk_elsewhere and is_bulk(name):
            continue
        path = directory / name
        if not path.is_file():
            raise BadInput(f"the dump in {directory} is damaged: {name} is missing")
        if (found := path.stat().st_size) != size:
            raise BadInput(f"the dump in {directory} is damaged: {name} has {found} bytes instead of {size}")
    pages = {
        name: size + sum(length for _, length in record.zeros.get(name, ()))
        for name, size in record.files.items()
        if holds_pages(name)
    }
    criu_images.check(directory, root=record.main_inside, pages=pages)
    return record


def sizes(directory: Path) -> dict[str, int]:
    """Bytes of each file but the record."""
    return {path.name: path.stat().st_size for path in sorted(directory.iterdir()) if path.name != RECORD}


def _parse(raw: Mapping[str, Any]) -> TreeRecord:
    launched = raw["launched"]
    return TreeRecord(
        name=_text(raw["name"]),
        main_inside=_number(raw["main_inside"], least=2),
        last_inside=_number(raw["last_inside"], least=2),
        run_directory=_path(raw["run_directory"]),
        state_directory=_path(raw["state_directory"]),
        launched=parse_launched(launched),
        processes=_texts(raw["processes"]),
        needs=tuple(
            NeededFile(_path(n["path"]), _number(n["bytes"]), int(n["mtime_ns"]), bool(n["written"]))
            for n in raw["needs"]
        ),
        output_bytes=_number(raw["output_bytes"]),
        taken=float(raw["taken"]),
        criu=_text(raw["criu"]),
        kernel=_text(raw["kernel"]),
        machine=_text(raw["machine"]),
        cpu_flags=_texts(raw["cpu_flags"]),
        files={_file_name(name): _number(size) for name, size in raw["files"].items()},
        shared=tuple(parse_shared(each) for each in (raw["shared"] if raw["format"] > 2 else [])),
        zeros={
            _file_name(name): tuple((_number(at), _number(length, least=1)) for at, length in stretches)
            for name, stretches in (raw["zeros"] if raw["format"] > 1 else {}).items()
        },
    )


def read_launched(run_directory: Path) -> Launched:
    """How the workload was started.

    Raises:
        Unsupported: it was started by a Kybernate that didn't write it down.
        KybernateError: the file is damaged.
    """
    path = run_directory / LAUNCH
    try:
        return parse_launched(json.loads(path.read_bytes()))
    except FileNotFoundError as e:
        name = run_directory.name
        raise Unsupported(f"workload {name} can't be dumped: {path} is missing", hint="start it anew") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise KybernateError(f"{path} is damaged: {e!r}") from e


def parse_launched(raw: Mapping[str, Any]) -> Launched:
    """From JSON. Raises KeyError, TypeError, ValueError or AttributeError where that is damaged."""
    return Launched(
        argv=_texts(raw["argv"]),
        environment={_text(key): _text(value) for key, value in raw["environment"].items()},
        directory=_path(raw["directory"]),
        uid=_number(raw["uid"]),
        gid=_number(raw["gid"]),
        groups=tuple(_number(group) for group in raw["groups"]),
        network=_text(raw["network"]),
        layers=tuple(_path(layer) for layer in raw["layers"]),
    )


def parse_shared(raw: Mapping[str, Any]) -> Shared:
    """From JSON. Raises KeyError, TypeError or ValueError where that is damaged."""
    lock = raw["lock"]
    return Shared(
        path=_path(raw["path"]),
        how=How(raw["how"]),
        lock=None
        if lock is None
        else Lock(_text(lock["kind"]), bool(lock["exclusive"]), _number(lock["start"]), _number(lock["length"])),
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _texts(value: Sequence[object]) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} is no list")
    return tuple(_text(part) for part in value)


def _number(value: object, *, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise TypeError(f"{value!r:.40} is no number of at least {least}")
    return value


def _path(value: object) -> str:
    text = _text(value)
    if not text.startswith("/") or ".." in text.split("/"):
        raise ValueError(f"{text[:80]!r} is no absolute path without '..'")
    return text


def _file_name(value: object) -> str:
    text = _text(value)
    if "/" in text or text in ("", ".", "..", RECORD):
        raise ValueError(f"{text[:80]!r} is no file's name")
    return text
