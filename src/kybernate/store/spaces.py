"""One tenant's part of a tier: its snapshots, and everything that is done with them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from kybernate.model.errors import NotFound
from kybernate.model.snapshot_names import SnapshotName, snapshot_name
from kybernate.store import manifests
from kybernate.store.budget import WriteBudget
from kybernate.store.catalog import Catalog
from kybernate.store.errors import Damaged, TooNew, WrongKey
from kybernate.store.leases import Leases
from kybernate.store.manifests import Manifest
from kybernate.store.media import Absent, Medium, key_of_key, key_of_manifest
from kybernate.store.pack_index import PackIndex
from kybernate.store.packs import PackId
from kybernate.store.space_catalog import SnapshotRow
from kybernate.store.tenants import Keys


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
        self.catalog = catalog.space(store, keys.tenant)
        self.budget = budget
        self.compress_below = compress_below
        self.packs = PackIndex(medium=medium, keys=keys, catalog=self.catalog, budget=budget)
        self.leases = Leases(medium, keys.tenant)
        self.last_changes = Changes()
        """What the first look at this space found: snapshots that are gone since the agent last ran, and unreadable ones."""

    def close(self) -> None:
        self.leases.close()

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def manifest(self, name: str) -> Manifest:
        """Raises NotFound, Damaged, TooNew, WrongKey."""
        checked = snapshot_name(name)
        try:
            content = self.medium.get(key_of_manifest(self.keys.tenant, checked), maximum=manifests.BYTES_MAX)
        except Absent as e:
            raise NotFound(f"there is no snapshot {name} in {self.medium.where}") from e
        return manifests.decode(content, self.keys, name=checked)

    def snapshots(self) -> list[SnapshotRow]:
        """All of them, by name. In a shared place, as of the last look (`refresh`)."""
        return sorted(self.catalog.snapshots().values(), key=lambda row: row.name)

    def delete(self, name: str) -> None:
        """Remove a snapshot. Its chunks stay until the next `gc`. Raises NotFound.

        A manifest that can't be read is removed too.
        """
        checked = snapshot_name(name)
        if not self.has_manifest(checked):
            raise NotFound(f"there is no snapshot {name} in {self.medium.where}")
        self.catalog.remove_snapshot(checked)
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
            packs = self.packs.refresh()
            changes.packs_found, changes.packs_gone, changes.problems = packs.found, packs.gone, list(packs.problems)
        self._refresh_snapshots(changes)
        self.budget.recount()
        self.last_changes = changes
        return changes

    def _refresh_snapshots(self, changes: Changes) -> None:
        known = self.catalog.snapshots()
        there = {entry.name: entry.size for entry in self.medium.entries(f"{self.keys.tenant}/manifests/")}
        for name in known.keys() - there.keys():
            self.catalog.remove_snapshot(name)
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
            self.catalog.add_snapshot(row)
            changes.snapshots_found.append(manifest.name)
