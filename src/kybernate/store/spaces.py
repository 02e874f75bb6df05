"""One tenant's part of a tier: its snapshots, and everything that is done with them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from kybernate.model.errors import NotFound
from kybernate.store import manifests, packs
from kybernate.store.budget import WriteBudget
from kybernate.store.catalog import Catalog, Place, SnapshotRow
from kybernate.store.errors import Damaged, TooNew, WrongKey
from kybernate.store.leases import Leases
from kybernate.store.manifests import Manifest
from kybernate.store.media import Absent, Medium, key_of_key, key_of_manifest, key_of_pack
from kybernate.store.packs import PackId, Record
from kybernate.store.pins import Pins, PinSet
from kybernate.store.progress import Cancel
from kybernate.store.tenants import ChunkId, Keys, SnapshotName, snapshot_name

_END_GUESS_BYTES = 64 << 10
"""So much is read from a pack's end at first: most indices are smaller."""


@dataclass(slots=True)
class Changes:
    """What `refresh` found to be other than the catalog said."""

    snapshots_found: list[SnapshotName] = field(default_factory=list)
    snapshots_gone: list[SnapshotName] = field(default_factory=list)
    packs_found: list[PackId] = field(default_factory=list)
    packs_gone: list[PackId] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """One line for each thing that can't be read."""


class Space:
    """See the module. `Tier.space` makes it. Thread-safe."""

    def __init__(
        self, store: str, keys: Keys, *, medium: Medium, catalog: Catalog, budget: WriteBudget, compress_below: float
    ) -> None:
        """
        Args:
            store: the id of the place.
            compress_below: chunks are stored compressed if they shrink to this part of their size; 0 is never.
        """
        self.keys = keys
        self.medium = medium
        self.catalog = catalog
        self.budget = budget
        self.compress_below = compress_below
        self.id = catalog.space(store, keys.tenant)
        self.pins = Pins()
        self._committed: Counter[PackId] = Counter()
        """How many snapshots committed since the start rely on a pack."""
        self.leases = Leases(medium, keys.tenant)
        self.too_new: TooNew | None = None
        """What was last said of a pack that a newer version wrote; chunks that are nowhere else may be in it."""
        self.last_changes = Changes()
        """What the first look at this space found: snapshots that are gone since the agent last ran, and unreadable ones."""

    def close(self) -> None:
        self.leases.close()

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def manifest(self, name: str) -> Manifest:
        """Raises NotFound, Damaged, TooNew, WrongKey."""
        checked = snapshot_name(name)
        try:
            content = self.medium.get(key_of_manifest(self.keys.tenant, checked), most=manifests.BYTES_MAX)
        except Absent as e:
            raise NotFound(f"there is no snapshot {name} in {self.medium.where}") from e
        return manifests.decode(content, self.keys, name=checked)

    def snapshots(self) -> list[SnapshotRow]:
        """All of them, by name. In a shared place, as of the last look (`refresh`)."""
        return sorted(self.catalog.snapshots(self.id).values(), key=lambda row: row.name)

    def delete(self, name: str) -> None:
        """Remove a snapshot. Its chunks stay until the next `gc`. Raises NotFound.

        A manifest that can't be read is removed too.
        """
        checked = snapshot_name(name)
        if not self.has_manifest(checked):
            raise NotFound(f"there is no snapshot {name} in {self.medium.where}")
        self.catalog.remove_snapshot(self.id, checked)
        self.medium.delete(key_of_manifest(self.keys.tenant, checked))
        self.budget.recount()

    def has_manifest(self, name: SnapshotName) -> bool:
        """Whether there is a snapshot of that name, whole or not."""
        return any(entry.name == name for entry in self.medium.entries(f"{self.keys.tenant}/manifests/"))

    # -- keys --------------------------------------------------------------------------------------------------------

    def check_key(self, keys: Keys | None = None) -> None:
        """Raises WrongKey unless this is the key that everything here is written with; the first one is written down."""
        keys = keys or self.keys
        record = json.dumps({"fingerprint": keys.fingerprint.hex()}).encode()
        try:
            there = self.medium.get(key_of_key(keys.tenant))
        except Absent:
            if any(True for _ in self.medium.entries(f"{keys.tenant}/manifests/")):
                return  # every manifest and pack says it as well
            if self.medium.create(key_of_key(keys.tenant), record):
                return
            there = self.medium.get(key_of_key(keys.tenant))
        if there == record:
            return
        try:
            fingerprint = bytes.fromhex(json.loads(there)["fingerprint"])
        except (ValueError, KeyError, TypeError) as e:
            raise Damaged(f"{self.medium.where}/{key_of_key(keys.tenant)} is damaged", hint="remove that file") from e
        if fingerprint == bytes(16):
            reason = "its snapshots are not encrypted, and a key was given"
        elif not keys.encrypted:
            reason = f"its snapshots are encrypted with the key {fingerprint.hex()}, and none was given"
        else:
            reason = f"its snapshots are encrypted with the key {fingerprint.hex()}; the one given is {keys.fingerprint.hex()}"
        raise WrongKey(f"wrong key for tenant {keys.tenant} in {self.medium.where}: {reason}")

    # -- what is really there ----------------------------------------------------------------------------------------

    def refresh(self, *, packs_too: bool = True) -> Changes:
        """Make the catalog say what is there, reading what it doesn't know. Reports what went away.

        A snapshot that the catalog knew and that isn't there any more is only told once: here and in `last_changes`.
        """
        changes = Changes()
        if packs_too:
            self._refresh_packs(changes)
        self._refresh_snapshots(changes)
        self.budget.recount()
        self.last_changes = changes
        return changes

    def refresh_packs(self) -> Changes:
        """The same for packs alone: what a writer needs to find what others have stored."""
        changes = Changes()
        self._refresh_packs(changes)
        if changes.packs_found or changes.packs_gone:
            self.budget.recount()
        return changes

    def _refresh_snapshots(self, changes: Changes) -> None:
        known = self.catalog.snapshots(self.id)
        there = {entry.name: entry.size for entry in self.medium.entries(f"{self.keys.tenant}/manifests/")}
        for name in known.keys() - there.keys():
            self.catalog.remove_snapshot(self.id, name)
            changes.snapshots_gone.append(name)
        for text, size in there.items():
            if text in known and known[SnapshotName(text)].manifest_bytes == size:
                continue
            try:
                manifest = self.manifest(text)
            except (Damaged, TooNew, WrongKey) as e:
                changes.problems.append(e.message)
                continue
            except Exception as e:
                changes.problems.append(f"{text!r} in {self.medium.where} is no snapshot: {e}")
                continue
            row = SnapshotRow(
                manifest.name, manifest.uid, manifest.created, manifest.size, json.dumps(manifest.labels), size
            )
            self.catalog.add_snapshot(self.id, row)
            changes.snapshots_found.append(manifest.name)

    def _refresh_packs(self, changes: Changes) -> None:
        known = self.catalog.packs(self.id)
        there = {
            PackId(entry.name): entry.size
            for entry in self.medium.entries(f"{self.keys.tenant}/packs/")
            if len(entry.name) == 32 and set(entry.name) <= set("0123456789abcdef")
        }
        gone = known.keys() - there.keys()
        if gone:
            self.catalog.remove_packs(self.id, gone)
            changes.packs_gone += gone
        new = [(pack, size) for pack, size in there.items() if known.get(pack) != size]
        if not new:
            return
        with ThreadPoolExecutor(self.medium.threads, thread_name_prefix="kybernate-index") as threads:
            for (pack, size), found in zip(new, threads.map(lambda item: self._indexed(*item), new), strict=True):
                if isinstance(found, str):
                    changes.problems.append(found)
                    self.catalog.mark_pack_damaged(self.id, pack)
                elif found is not None:
                    self.catalog.add_pack(self.id, pack, size, found)
                    changes.packs_found.append(pack)

    def _indexed(self, pack: PackId, size: int) -> list[Record] | str | None:
        try:
            return self.read_index(pack, size)
        except Absent:
            return None
        except TooNew as e:
            self.too_new = e
            return e.message
        except (Damaged, WrongKey) as e:
            return e.message

    def read_index(self, pack: PackId, size: int) -> list[Record]:
        """A pack's own list of what is in it. Raises Absent, Damaged, TooNew, WrongKey."""
        cancel = Cancel()
        tenant = self.keys.tenant
        head = bytearray(min(size, 128))
        self.medium.read(tenant, pack, 0, [memoryview(head)], cancel)
        packs.check_header(bytes(head), pack, self.keys)
        length = min(size, _END_GUESS_BYTES)
        end = bytearray(length)
        self.medium.read(tenant, pack, size - length, [memoryview(end)], cancel)
        trailer = packs.decode_trailer(bytes(end[-packs.TRAILER_BYTES :]), pack, size)
        if trailer.index_offset >= size - length:
            at = trailer.index_offset - (size - length)
            index = bytes(end[at : at + trailer.index_bytes])
        else:
            whole = bytearray(trailer.index_bytes)
            self.medium.read(tenant, pack, trailer.index_offset, [memoryview(whole)], cancel)
            index = bytes(whole)
        return packs.decode_index(index, trailer, pack, self.keys)

    # -- for readers and writers -------------------------------------------------------------------------------------

    def pin_set(self) -> PinSet:
        return PinSet(self.pins)

    def share(self, chunk: ChunkId, pins: PinSet) -> bool:
        """Whether the chunk is there already; its pack is pinned then."""
        with self.pins.lock:
            place = self.catalog.find(self.id, chunk)
            if place is None:
                return False
            pins.add(place.pack)
            return True

    def add_pack(self, pack: PackId, size: int, records: list[Record]) -> None:
        self.catalog.add_pack(self.id, pack, size, records)

    def check_there(self, wanted: Iterable[PackId]) -> None:
        """Raises Damaged unless all these packs are there; the catalog forgets those that aren't."""
        wanted = set(wanted)
        if not wanted:
            return
        there = {entry.name for entry in self.medium.entries(f"{self.keys.tenant}/packs/")}
        missing = wanted - there
        if missing:
            self.catalog.remove_packs(self.id, missing)
            raise Damaged(
                f"{len(missing)} packs have gone from {self.medium.where} (the first is {min(missing)}): somebody removed them",
                hint="try again: what is missing is stored anew",
            )

    def locate(
        self, chunks: Sequence[ChunkId], pins: PinSet, hint: Sequence[PackId], *, anew: bool = False
    ) -> dict[ChunkId, list[Place]]:
        """Each place of these chunks, as far as there is one; their packs are pinned.

        Args:
            hint: packs that are likely to have them.
            anew: look at what is there first.
        """
        if anew:
            self.refresh_packs()
        found = self._pinned(chunks, pins)
        if len(found) == len(set(chunks)):
            return found
        known = self.catalog.packs(self.id)
        if unknown := [pack for pack in hint if pack not in known]:
            self._learn(unknown)
            found = self._pinned(chunks, pins)
            if len(found) == len(set(chunks)):
                return found
        if not anew:  # packs may have been rewritten since the manifest was
            self.refresh_packs()
            found = self._pinned(chunks, pins)
        return found

    def _pinned(self, chunks: Sequence[ChunkId], pins: PinSet) -> dict[ChunkId, list[Place]]:
        with self.pins.lock:
            found = self.catalog.find_all(self.id, chunks)
            for pack in {place.pack for places in found.values() for place in places}:
                pins.add(pack)
        return found

    def _learn(self, wanted: Sequence[PackId]) -> None:
        """Read the indices of packs that the catalog doesn't know: quicker than looking at all."""

        def sized(pack: PackId) -> int | None:
            try:
                return self.medium.pack_size(self.keys.tenant, pack)
            except Absent:
                return None

        with ThreadPoolExecutor(self.medium.threads, thread_name_prefix="kybernate-index") as threads:
            sizes = list(threads.map(sized, wanted))
            there = [(pack, size) for pack, size in zip(wanted, sizes, strict=True) if size is not None]
            for (pack, size), found in zip(there, threads.map(lambda item: self._indexed(*item), there), strict=True):
                if isinstance(found, list):
                    self.catalog.add_pack(self.id, pack, size, found)

    def note_committed(self, used: Iterable[PackId]) -> None:
        """A manifest is about to name these packs."""
        with self.pins.lock:
            self._committed.update(used)

    def note_not_committed(self, used: Iterable[PackId]) -> None:
        """It came to nothing after all."""
        with self.pins.lock:
            self._committed.subtract(used)

    def drop_garbage(self, candidates: Iterable[PackId]) -> None:
        """Remove packs that a writer of this process made and gave up, unless another one shares them by now."""
        for pack in candidates:
            with self.pins.lock:
                if self.pins.in_use(pack) or self._committed[pack] > 0:
                    continue
                self.catalog.remove_packs(self.id, [pack])
            self.remove_pack(pack)
        self.budget.recount()

    def remove_pack(self, pack: PackId) -> None:
        """Nobody may need it any more."""
        self.medium.delete(key_of_pack(self.keys.tenant, pack))
