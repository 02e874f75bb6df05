"""What the store asks of a place to keep things in. Two exist: `local.LocalMedium` and `objects.ObjectMedium`.

Things are called by keys such as `default/packs/0f...`. A key's content never changes once it is there. Names are checked
before they become part of a key (`tenants`), so no key leads outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from kybernate.model.snapshot_names import SnapshotName
from kybernate.store.errors import Damaged
from kybernate.store.packs import PackId
from kybernate.store.progress import Cancel
from kybernate.store.tenants import TenantName

TIER_KEY = "tier"
"""The tier's identity."""


def key_of_pack(tenant: TenantName, pack: PackId) -> str:
    return f"{tenant}/packs/{pack}"


def key_of_manifest(tenant: TenantName, name: SnapshotName) -> str:
    return f"{tenant}/manifests/{name}"


def key_of_key(tenant: TenantName) -> str:
    """Where the fingerprint of a tenant's key is kept."""
    return f"{tenant}/key"


SMALL_BYTES_MAX = 1 << 20
"""Of everything that is no manifest and no pack: identities, fingerprints, leases, claims."""


def too_large(what: str, size: int | None, maximum: int) -> Damaged:
    """Something that is far from what this product writes, so that nobody can fill an agent's memory with it."""
    found = "more" if size is None else f"{size} bytes"
    return Damaged(
        f"{what} is damaged: it has {found}, and at most {maximum} make sense",
        hint="Kybernate didn't write it; find out who did, and remove it",
    )


class Absent(Exception):
    """There is nothing of this key."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing of a listing."""

    name: str
    """The key's last part."""
    size: int
    modified: float
    """When it was put there, by the medium's own clock; seconds since 1970."""


class PackFile(Protocol):
    """A pack being written. `write` may be called from several threads at once."""

    capacity: int
    """The pack must not become larger, in bytes."""

    def write(self, offset: int, view: memoryview) -> None:
        """Whole pages at a page. Where the medium `keeps_views`, the view must stay as it is until `finish` or `abandon`.

        Raises NoRoom when the disk is full.
        """

    def finish(self, size: int) -> None:
        """All is written, nothing twice, no hole: make it a pack of this size. After `Medium.sync` it survives a power cut.

        Raises NoRoom or TierAway; the file can then only be abandoned.
        """

    def abandon(self) -> None:
        """Forget it. Never raises."""


class Medium(Protocol):
    """See the module. All methods are thread-safe; all may raise TierAway when the place doesn't answer."""

    where: str
    """For people: a path or a URL."""
    keeps_views: bool
    """Whether a pack is only sent once it is complete."""
    wants_alignment: bool
    """Whether memory must begin at a page to be written or read without a copy."""
    shared: bool
    """Whether other agents may use the same place at the same time."""
    pack_bytes: int
    """How large packs become here."""
    read_bytes: int
    """How much is read at once where it lies together."""
    threads: int
    """How many reads and writes are in flight at once."""
    finishing: int
    """How many packs may be open or on their way at once."""
    held_bytes: int
    """No further pack is begun while those on their way hold more memory of our own than this; with `keeps_views`."""

    def open(self) -> None:
        """Take possession. Raises Busy when another agent has it, BadInput when there is no such place."""

    def close(self) -> None: ...

    def get(self, key: str, *, maximum: int = SMALL_BYTES_MAX) -> bytes:
        """A small thing, whole. Raises Absent, and Damaged, having read no more than that, if it has more than `maximum` bytes."""

    def create(self, key: str, content: bytes) -> bool:
        """Put a small thing there, whole or not at all, durable on return; False when another is there already."""

    def delete(self, key: str) -> None:
        """Durable on return; no matter if there is nothing."""

    def entries(self, prefix: str) -> Iterator[Entry]:
        """What lies directly under a prefix that ends with '/'."""

    def tenants(self) -> list[str]:
        """Whatever may be a tenant's name here."""

    def open_pack(self, tenant: TenantName, pack: PackId, *, capacity: int, cancel: Cancel) -> PackFile:
        """Begin a pack; it may get less room than asked for. Raises NoRoom."""

    def read(self, tenant: TenantName, pack: PackId, offset: int, views: Sequence[memoryview], cancel: Cancel) -> None:
        """Fill views from consecutive places in a pack. Raises Absent, or Damaged when the pack ends before."""

    def pack_size(self, tenant: TenantName, pack: PackId) -> int:
        """Raises Absent."""

    def sync(self, tenant: TenantName) -> None:
        """Finished packs survive a power cut once this returns."""

    def free_bytes(self) -> int | None:
        """Room left, None where nobody can tell."""
