"""`verify`: reads everything and compares it with its hashes; says what is wrong and which snapshots suffer.

Snapshots may be deleted and garbage collected meanwhile, in a bucket by other agents: what nobody needs any more is no problem.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from kybernate.model.errors import KybernateError, NotFound
from kybernate.model.progress import ProgressCallback
from kybernate.model.snapshot_names import SnapshotName
from kybernate.store.errors import Damaged, TooNew, WrongKey
from kybernate.store.manifests import ZERO, Manifest
from kybernate.store.memory import BufferPool
from kybernate.store.packs import PackId, Record
from kybernate.store.progress import Cancel, Meter
from kybernate.store.records import spans, troubles
from kybernate.store.spaces import Space
from kybernate.store.tenants import ChunkId


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that isn't as it should be."""

    text: str
    snapshots: tuple[SnapshotName, ...]
    """That can't be restored because of it; empty where it is in nobody's way."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at, and what was found. Sizes in bytes."""

    snapshots: int
    packs: int
    chunks: int
    bytes_read: int
    problems: tuple[Problem, ...]


def verify(
    space: Space,
    names: Iterable[str] | None = None,
    *,
    content: bool = True,
    progress: ProgressCallback | None = None,
    cancel: Cancel | None = None,
) -> Verified:
    """Look at everything, or at some snapshots and what they need.

    Chunks found damaged are marked: the next snapshot that has them stores them again, which heals older ones too.

    Args:
        names: of the snapshots; None is all, and all packs, garbage included.
        content: whether to read and hash the chunks; without, only that they are there.

    Raises:
        NotFound: one of `names`. TierAway. Cancelled.
    """
    return _Verifier(space, content, progress, cancel or Cancel()).run(None if names is None else list(names))


class _Verifier:
    def __init__(self, space: Space, content: bool, progress: ProgressCallback | None, cancel: Cancel) -> None:
        self._space = space
        self._content = content
        self._progress = progress
        self._cancel = cancel
        self._problems: list[Problem] = []
        self._chunks = self._bytes = 0

    def run(self, names: list[str] | None) -> Verified:
        space = self._space
        pins = space.packs.pin_set()
        try:
            changes = space.packs.refresh()
            self._problems += [Problem(text, ()) for text in changes.problems]
            manifests = self._manifests(names)
            wanted = None if names is None else {c for m in manifests for c in m.ids() if c != ZERO}
            with space.packs.pins.lock:
                packs = space.catalog.packs()
                for pack in packs:
                    pins.add(pack)
            bad = self._check_packs(packs, wanted)
            there = self._there("manifests")
            self._blame([manifest for manifest in manifests if manifest.name in there], bad)
        finally:
            pins.release()
        return Verified(len(manifests), len(packs), self._chunks, self._bytes, tuple(self._problems))

    def _manifests(self, names: list[str] | None) -> list[Manifest]:
        found = []
        for name in self._there("manifests") if names is None else names:
            try:
                found.append(self._space.manifest(name))
            except NotFound:
                if names is not None:
                    raise
                continue  # deleted since it was listed
            except (Damaged, TooNew, WrongKey) as e:
                self._problems.append(Problem(e.message, (SnapshotName(name),)))
            except KybernateError as e:
                if names is not None:
                    raise
                self._problems.append(Problem(e.message, ()))
        return found

    def _there(self, kind: str) -> dict[str, None]:
        """Names of what there is now, in order."""
        return {entry.name: None for entry in self._space.medium.entries(f"{self._space.keys.tenant}/{kind}/")}

    def _check_packs(self, packs: dict[PackId, int], wanted: set[ChunkId] | None) -> dict[ChunkId, tuple[PackId, str]]:
        """The chunks that are damaged in a pack: in which, and what is wrong."""
        if not self._content:
            return {}
        space = self._space

        def records_of(pack: PackId) -> list[Record]:
            return [r for r in space.catalog.records(pack) if wanted is None or r.id in wanted]

        total = sum(record.stored for pack in packs for record in records_of(pack))
        meter = Meter(f"verifying {space.medium.where}", total, self._progress)
        bad: dict[ChunkId, tuple[PackId, str]] = {}
        buffers = BufferPool(space.medium.threads)

        def one(pack: PackId, run: list[Record]) -> dict[Record, str]:
            self._cancel.check("verifying")
            buffer = buffers.take()
            try:
                return troubles(space, pack, run, buffer, self._cancel)
            finally:
                buffers.give(buffer)
                stored = sum(record.stored for record in run)
                meter.add(stored, stored)

        with ThreadPoolExecutor(space.medium.threads, thread_name_prefix="kybernate-verify") as threads:
            for pack in packs:
                records = records_of(pack)
                self._chunks += len(records)
                self._bytes += sum(record.stored for record in records)
                for found in threads.map(partial(one, pack), list(spans(records))):
                    for record, trouble in found.items():
                        bad[record.id] = (pack, trouble)
                        space.catalog.mark_damaged(pack, record.id)
        buffers.close()
        meter.tell()
        return bad

    def _blame(self, manifests: list[Manifest], bad: dict[ChunkId, tuple[PackId, str]]) -> None:
        """Which snapshots can't be restored: a chunk is damaged or missing, and no other pack has it."""
        space = self._space
        blamed: dict[ChunkId, list[SnapshotName]] = {}
        for manifest in manifests:
            needed = list(dict.fromkeys(c for c in manifest.ids() if c != ZERO))
            unsound = set(needed) - space.catalog.sound(needed)
            for chunk in unsound & bad.keys():
                blamed.setdefault(chunk, []).append(manifest.name)
            if lost := sorted(unsound - bad.keys()):
                text = f"snapshot {manifest.name}: {len(lost)} of its chunks are in no pack, or in a damaged one"
                self._problems.append(Problem(f"{text} (the first is {lost[0].hex()[:16]})", (manifest.name,)))
        there = self._there("packs") if bad else {}
        for chunk, (pack, trouble) in bad.items():
            if chunk in blamed or pack in there:
                self._problems.append(Problem(f"pack {pack}: {trouble}", tuple(blamed.get(chunk, ()))))
