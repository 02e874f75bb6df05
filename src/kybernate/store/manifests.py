"""The format of manifests: what a snapshot consists of. Pure functions over bytes.

    head   magic, version, the snapshot's uid, the key's fingerprint, nonce, lengths
    body   JSON (names, extents, files, needs, the engine's own state), then the ids of all chunks, 32 bytes each;
           encrypted as a whole where the tenant has a key
    seal   32 bytes over all that stands before

A manifest is written last, so a snapshot that has one is whole. It never changes: chunks are found by their ids, so packs
may be rewritten under it; `packs` is a hint where to look first.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Annotated, Any, Self

from cryptography.exceptions import InvalidTag
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from kybernate.model.errors import BadInput
from kybernate.model.snapshot_names import SnapshotName, snapshot_name
from kybernate.model.types import CHUNK_BYTES
from kybernate.store.errors import Damaged, TooNew, WrongKey
from kybernate.store.needs import Needs
from kybernate.store.packs import PackId
from kybernate.store.tenants import ID_BYTES, ChunkId, Keys

VERSION = 2
"""2: files may be cut elsewhere than every 2 MiB."""
ZERO = ChunkId(bytes(ID_BYTES))
"""Stands for a chunk of zeros, which is stored nowhere."""

BYTES_MAX = 256 << 20
"""Enough for 16 TiB of VRAM, or for 2 TiB of process memory, which is cut finer. What says it is larger is none of ours."""

_MAGIC = b"\x89KYBSNP\n"
_HEAD = struct.Struct("<8sII16s16s12sII")
_SEAL_BYTES = 32
_TAG_BYTES = 16
_CHUNKS_MAX = 1 << 28


def relative_path(text: str) -> str:
    """Check the path of a file inside a snapshot. Raises BadInput for what leads outside or is no plain path."""
    path = PurePosixPath(text)
    if (
        not text
        or "\0" in text
        or text != str(path)
        or not path.parts
        or path.is_absolute()
        or any(part in ("..", ".") for part in path.parts)
        or len(text.encode(errors="surrogatepass")) > 4096
        or any(len(part.encode(errors="surrogatepass")) > 255 for part in path.parts)
    ):
        raise BadInput(f"bad path {text[:80]!r} in a snapshot", hint="use a relative path without '..'")
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise BadInput(f"bad path {text[:80]!r} in a snapshot: it isn't UTF-8") from e
    return text


def _checked_path(text: str) -> str:
    try:
        return relative_path(text)
    except BadInput as e:
        raise ValueError(e.message) from e


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    first: int = Field(ge=0, le=_CHUNKS_MAX)
    """Where in the table of ids its chunks begin."""
    size: int = Field(ge=0, le=1 << 50)
    """Bytes."""

    @property
    def count(self) -> int:
        """How many chunks it has; the last one may be shorter."""
        return -(-self.size // CHUNK_BYTES)

    def length(self, number: int) -> int:
        """Bytes of a chunk, counted from 0."""
        return min(CHUNK_BYTES, self.size - number * CHUNK_BYTES)

    def offsets(self) -> Sequence[int]:
        """Where in it each chunk begins."""
        return range(0, self.size, CHUNK_BYTES)


class StoredExtent(_Part):
    """One extent's content."""

    about: dict[str, JsonValue] = Field(default_factory=dict)
    """The engine's own words: whose it is, its address, its GPU."""


class StoredFile(_Part):
    """One file's content."""

    path: Annotated[str, AfterValidator(_checked_path)]
    mode: int = Field(default=0o600, ge=0, le=0o7777)
    cuts: tuple[Annotated[int, Field(ge=1, le=CHUNK_BYTES)], ...] = ()
    """Bytes of each chunk, where it isn't cut every 2 MiB."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.cuts and sum(self.cuts) != self.size:
            raise ValueError(f"{self.path} is cut into {sum(self.cuts)} bytes and has {self.size}")
        return self

    @property
    def count(self) -> int:
        return len(self.cuts) or super().count

    def length(self, number: int) -> int:
        return self.cuts[number] if self.cuts else super().length(number)

    def offsets(self) -> Sequence[int]:
        return tuple(accumulate(self.cuts[:-1], initial=0)) if self.cuts else super().offsets()


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    created: float
    extents: tuple[StoredExtent, ...] = ()
    files: tuple[StoredFile, ...] = ()
    state: dict[str, JsonValue] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    needs: Needs = Needs()
    packs: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")], ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """A snapshot, whole."""

    name: SnapshotName
    uid: str
    """32 hexadecimal digits; copies of one snapshot in several tiers share it."""
    created: float
    """Seconds since 1970."""
    extents: tuple[StoredExtent, ...]
    files: tuple[StoredFile, ...]
    table: bytes
    """Ids of all chunks."""
    state: dict[str, Any]
    """The engine's own, as JSON."""
    labels: dict[str, str]
    needs: Needs
    packs: tuple[PackId, ...]

    def id(self, index: int) -> ChunkId:
        return ChunkId(self.table[index * ID_BYTES : (index + 1) * ID_BYTES])

    def ids(self) -> Iterator[ChunkId]:
        """The id of each chunk, those of zeros and repetitions included."""
        return (ChunkId(self.table[at : at + ID_BYTES]) for at in range(0, len(self.table), ID_BYTES))

    @property
    def parts(self) -> tuple[StoredExtent | StoredFile, ...]:
        return (*self.extents, *self.files)

    @property
    def size(self) -> int:
        """Bytes of all extents and files, zeros included."""
        return sum(part.size for part in self.parts)

    def file(self, path: str) -> StoredFile:
        """Raises BadInput when there is none of that name."""
        found = next((file for file in self.files if file.path == path), None)
        if found is None:
            raise BadInput(f"snapshot {self.name} has no file {path[:80]!r}")
        return found


def encode(manifest: Manifest, keys: Keys) -> bytes:
    """Raises BadInput when it would be too large to be read again."""
    body = _Body(
        name=manifest.name,
        created=manifest.created,
        extents=manifest.extents,
        files=manifest.files,
        state=manifest.state,
        labels=manifest.labels,
        needs=manifest.needs,
        packs=manifest.packs,
    )
    text = body.model_dump_json().encode()
    nonce = os.urandom(12)
    if len(text) + len(manifest.table) + _HEAD.size + _TAG_BYTES + _SEAL_BYTES > BYTES_MAX:
        raise BadInput(
            f"snapshot {manifest.name} has {manifest.size} bytes in {len(manifest.table) // ID_BYTES} chunks, which is more than "
            "a manifest can name"
        )
    head = _HEAD.pack(
        _MAGIC,
        VERSION,
        0,
        bytes.fromhex(manifest.uid),
        keys.fingerprint,
        nonce,
        len(text),
        len(manifest.table) // ID_BYTES,
    )
    content = text + manifest.table
    if keys.cipher is not None:
        content = keys.cipher.encrypt(nonce, content, head)
    return head + content + keys.seal(head, content)


def decode(content: bytes, keys: Keys, *, name: SnapshotName) -> Manifest:
    """A manifest from what lies under this name.

    Raises:
        Damaged: it isn't what was written.
        TooNew: a newer version wrote it.
        WrongKey: it was written with another key.
    """
    what = f"the manifest of snapshot {name}"
    if len(content) < _HEAD.size + _SEAL_BYTES or not content.startswith(_MAGIC):
        raise Damaged(f"{what} is damaged: it doesn't begin like one")
    head = content[: _HEAD.size]
    _magic, version, _flags, uid, fingerprint, nonce, text_bytes, count = _HEAD.unpack(head)
    if version > VERSION:
        raise TooNew(
            f"{what} has format {version}; this version of Kybernate reads up to {VERSION}", hint="update Kybernate"
        )
    if fingerprint != keys.fingerprint:
        raise WrongKey(f"{what} was written with the key {fingerprint.hex()}, not with {keys.fingerprint.hex()}")
    inner = content[_HEAD.size : -_SEAL_BYTES]
    if keys.seal(head, inner) != content[-_SEAL_BYTES:]:
        raise Damaged(f"{what} is damaged or cut off: its seal isn't right")
    if keys.cipher is not None:
        try:
            inner = keys.cipher.decrypt(nonce, inner, head)
        except InvalidTag as e:
            raise Damaged(f"{what} is damaged: it can't be decrypted") from e
    if version < 1 or text_bytes + count * ID_BYTES != len(inner):
        raise Damaged(f"{what} is damaged: its lengths make no sense")
    return _understood(inner[:text_bytes], inner[text_bytes:], uid.hex(), what, name)


def _understood(text: bytes, table: bytes, uid: str, what: str, name: SnapshotName) -> Manifest:
    try:
        body = _Body.model_validate_json(text)
        if snapshot_name(body.name) != name:
            raise Damaged(f"{what} says it is of snapshot {body.name}: somebody renamed it")
    except (ValidationError, BadInput) as e:
        raise Damaged(f"{what} makes no sense: {str(e).splitlines()[0]}") from e
    count = len(table) // ID_BYTES
    if any(part.first + part.count > count for part in (*body.extents, *body.files)) or not math.isfinite(body.created):
        raise Damaged(f"{what} makes no sense: it names chunks it doesn't have")
    if len({file.path for file in body.files}) != len(body.files):
        raise Damaged(f"{what} makes no sense: it names a file twice")
    return Manifest(
        name=name,
        uid=uid,
        created=body.created,
        extents=body.extents,
        files=body.files,
        table=table,
        state=body.state,
        labels=body.labels,
        needs=body.needs,
        packs=tuple(PackId(pack) for pack in body.packs),
    )
