"""The packs of a space: which there are, what is in them, and who relies on them.

What the catalog says of packs is only what was seen last; here it is compared with what is there. A pack that somebody of
this process relies on is pinned, so that garbage collection leaves it alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from kybernate.store import packs
from kybernate.store.budget import WriteBudget
from kybernate.store.errors import Damaged, TooNew, WrongKey
from kybernate.store.media import Absent, Medium, key_of_pack
from kybernate.store.packs import PackId, Record
from kybernate.store.pins import Pins, PinSet
from kybernate.store.progress import Cancel
from kybernate.store.space_catalog import ChunkLocation, SpaceCatalog
from kybernate.store.tenants import ChunkId, Keys

_END_GUESS_BYTES = 64 << 10
"""So much is read from a pack's end at first: most indices are smaller."""


@dataclass(slots=True)
class PackChanges:
    """What `refresh` found to be other than the catalog said."""

    found: list[PackId] = field(default_factory=list)
    gone: list[PackId] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """One line for each pack that can't be read."""


class PackIndex:
    """See the module. Thread-safe."""

    def __init__(self, *, medium: Medium, keys: Keys, catalog: SpaceCatalog, budget: WriteBudget) -> None:
        self._medium = medium
        self._keys = keys
        self._catalog = catalog
        self._budget = budget
        self.pins = Pins()
        self._committed: Counter[PackId] = Counter()
        """How many snapshots committed since the start rely on a pack."""
        self.too_new: TooNew | None = None
        """What was last said of a pack that a newer version wrote; chunks that are nowhere else may be in it."""

    # -- what is really there ----------------------------------------------------------------------------------------

    def refresh(self) -> PackChanges:
        """Make the catalog say which packs there are, reading the indices of those it doesn't know."""
        changes = PackChanges()
        self._compare(changes)
        if changes.found or changes.gone:
            self._budget.recount()
        return changes

    def _compare(self, changes: PackChanges) -> None:
        known = self._catalog.packs()
        there = {
            PackId(entry.name): entry.size
            for entry in self._medium.entries(f"{self._keys.tenant}/packs/")
            if len(entry.name) == 32 and set(entry.name) <= set("0123456789abcdef")
        }
        gone = known.keys() - there.keys()
        if gone:
            self._catalog.remove_packs(gone)
            changes.gone += gone
        new = [(pack, size) for pack, size in there.items() if known.get(pack) != size]
        if not new:
            return
        with ThreadPoolExecutor(self._medium.threads, thread_name_prefix="kybernate-index") as threads:
            for (pack, size), found in zip(new, threads.map(lambda item: self._indexed(*item), new), strict=True):
                if isinstance(found, str):
                    changes.problems.append(found)
                    self._catalog.mark_pack_damaged(pack)
                elif found is not None:
                    self._catalog.add_pack(pack, size, found)
                    changes.found.append(pack)

    def _indexed(self, pack: PackId, size: int) -> list[Record] | str | None:
        try:
            return self.read(pack, size)
        except Absent:
            return None
        except TooNew as e:
            self.too_new = e
            return e.message
        except (Damaged, WrongKey) as e:
            return e.message

    def read(self, pack: PackId, size: int) -> list[Record]:
        """A pack's own list of what is in it. Raises Absent, Damaged, TooNew, WrongKey."""
        cancel = Cancel()
        tenant = self._keys.tenant
        head = bytearray(min(size, 128))
        self._medium.read(tenant, pack, 0, [memoryview(head)], cancel)
        packs.check_header(bytes(head), pack, self._keys)
        length = min(size, _END_GUESS_BYTES)
        end = bytearray(length)
        self._medium.read(tenant, pack, size - length, [memoryview(end)], cancel)
        trailer = packs.decode_trailer(bytes(end[-packs.TRAILER_BYTES :]), pack, size)
        if trailer.index_offset >= size - length:
            at = trailer.index_offset - (size - length)
            index = bytes(end[at : at + trailer.index_bytes])
        else:
            whole = bytearray(trailer.index_bytes)
            self._medium.read(tenant, pack, trailer.index_offset, [memoryview(whole)], cancel)
            index = bytes(whole)
        return packs.decode_index(index, trailer, pack, self._keys)

    # -- for readers and writers -------------------------------------------------------------------------------------

    def pin_set(self) -> PinSet:
        return PinSet(self.pins)

    def share(self, chunk: ChunkId, pins: PinSet) -> bool:
        """Whether the chunk is there already; its pack is pinned then."""
        with self.pins.lock:
            location = self._catalog.find(chunk)
            if location is None:
                return False
            pins.add(location.pack)
            return True

    def share_all(self, chunks: Sequence[ChunkId], pins: PinSet) -> set[ChunkId]:
        """Which of the chunks are there already; their packs are pinned then."""
        with self.pins.lock:
            found = self._catalog.undamaged(chunks)
            for pack in set(found.values()):
                pins.add(pack)
        return set(found)

    def add(self, pack: PackId, size: int, records: list[Record]) -> None:
        self._catalog.add_pack(pack, size, records)

    def check_there(self, wanted: Iterable[PackId]) -> None:
        """Raises Damaged unless all these packs are there; the catalog forgets those that aren't."""
        wanted = set(wanted)
        if not wanted:
            return
        there = {entry.name for entry in self._medium.entries(f"{self._keys.tenant}/packs/")}
        missing = wanted - there
        if missing:
            self._catalog.remove_packs(missing)
            raise Damaged(
                f"{len(missing)} packs have gone from {self._medium.where} (the first is {min(missing)}): somebody removed them",
                hint="try again: what is missing is stored anew",
            )

    def locate(
        self, chunks: Sequence[ChunkId], pins: PinSet, hint: Sequence[PackId], *, anew: bool = False
    ) -> dict[ChunkId, list[ChunkLocation]]:
        """All locations of these chunks, as far as there is one; their packs are pinned.

        Args:
            hint: packs that are likely to have them.
            anew: look at what is there first.
        """
        if anew:
            self.refresh()
        found = self._pinned(chunks, pins)
        if len(found) == len(set(chunks)):
            return found
        known = self._catalog.packs()
        if unknown := [pack for pack in hint if pack not in known]:
            self._learn(unknown)
            found = self._pinned(chunks, pins)
            if len(found) == len(set(chunks)):
                return found
        if not anew:  # packs may have been rewritten since the manifest was
            self.refresh()
            found = self._pinned(chunks, pins)
        return found

    def _pinned(self, chunks: Sequence[ChunkId], pins: PinSet) -> dict[ChunkId, list[ChunkLocation]]:
        with self.pins.lock:
            found = self._catalog.find_all(chunks)
            for pack in {location.pack for locations in found.values() for location in locations}:
                pins.add(pack)
        return found

    def _learn(self, wanted: Sequence[PackId]) -> None:
        """Read the indices of packs that the catalog doesn't know: quicker than looking at all."""

        def sized(pack: PackId) -> int | None:
            try:
                return self._medium.pack_size(self._keys.tenant, pack)
            except Absent:
                return None

        with ThreadPoolExecutor(self._medium.threads, thread_name_prefix="kybernate-index") as threads:
            sizes = list(threads.map(sized, wanted))
            there = [(pack, size) for pack, size in zip(wanted, sizes, strict=True) if size is not None]
            for (pack, size), found in zip(there, threads.map(lambda item: self._indexed(*item), there), strict=True):
                if isinstance(found, list):
                    self._catalog.add_pack(pack, size, found)

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
                self._catalog.remove_packs([pack])
            self.remove(pack)
        self._budget.recount()

    def remove(self, pack: PackId) -> None:
        """Nobody may need it any more."""
        self._medium.delete(key_of_pack(self._keys.tenant, pack))
