"""A manifest while its snapshot is being written: the table of chunk ids, the extents and the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from kybernate.model.errors import BadInput
from kybernate.model.snapshot_names import SnapshotName
from kybernate.store.manifests import Manifest, StoredExtent, StoredFile, relative_path
from kybernate.store.needs import Needs
from kybernate.store.packs import PackId
from kybernate.store.tenants import ID_BYTES, ChunkId


class Draft:
    """See the module. One thread adds parts; `put` may be called by any, each for another chunk."""

    def __init__(self, name: SnapshotName) -> None:
        self.name = name
        self._table = bytearray()
        self._extents: list[StoredExtent] = []
        self._files: dict[str, StoredFile] = {}

    @property
    def end(self) -> int:
        """The index of the next chunk to come."""
        return len(self._table) // ID_BYTES

    def grow(self, count: int) -> int:
        """Make room for so many chunks, which are zeros until they are `put`. Returns the first one's index."""
        first = self.end
        self._table += bytes(count * ID_BYTES)
        return first

    def put(self, index: int, chunk: ChunkId) -> None:
        self._table[index * ID_BYTES : (index + 1) * ID_BYTES] = chunk

    def add_extent(self, first: int, size: int, about: Mapping[str, Any]) -> int:
        """Returns its number. Raises BadInput when `about` isn't JSON."""
        try:
            self._extents.append(StoredExtent(first=first, size=size, about=dict(about)))
        except ValidationError as e:
            raise BadInput(f"what is said about an extent isn't JSON: {str(e).splitlines()[0]}") from e
        return len(self._extents) - 1

    def check_new(self, path: str) -> None:
        """Raises BadInput for a path that is bad, or there already."""
        relative_path(path)
        if path in self._files:
            raise BadInput(f"snapshot {self.name} has a file {path!r} already")

    def add_file(self, path: str, *, mode: int, first: int, size: int, cuts: Sequence[int] = ()) -> StoredFile:
        file = StoredFile(path=path, mode=mode, first=first, size=size, cuts=tuple(cuts))
        self._files[path] = file
        return file

    def adopt(self, manifest: Manifest) -> None:
        """Consist of what another manifest says."""
        self._table = bytearray(manifest.table)
        self._extents = list(manifest.extents)
        self._files = {file.path: file for file in manifest.files}

    def manifest(
        self,
        *,
        uid: str,
        created: float,
        state: Mapping[str, Any],
        labels: Mapping[str, str],
        needs: Needs,
        packs: Sequence[PackId],
    ) -> Manifest:
        return Manifest(
            name=self.name,
            uid=uid,
            created=created,
            extents=tuple(self._extents),
            files=tuple(self._files.values()),
            table=bytes(self._table),
            state=dict(state),
            labels=dict(labels),
            needs=needs,
            packs=tuple(packs),
        )
