"""A tier: one place (a directory, a bucket) with the snapshots of any number of tenants in it, and a budget.

    tier = Tier(LocalMedium(Path("/var/lib/kybernate/snapshots")), catalog, budget_bytes=...)
    tier.open()
    space = tier.space(keys_of(tenant, secret))

The place carries a random id. The catalog remembers which id was where, so a disk that isn't mounted or a bucket that was
emptied is told (`TierWiped`) instead of being taken for a new tier.
"""

from __future__ import annotations

import json
import secrets
import threading

from kybernate.model.errors import BadInput, KybernateError
from kybernate.store.budget import TierBudget, Usage
from kybernate.store.catalog import Catalog
from kybernate.store.errors import Damaged, TierWiped, TooNew
from kybernate.store.media import TIER_KEY, Absent, Medium
from kybernate.store.spaces import Space
from kybernate.store.tenants import Keys, TenantName, tenant_name

_FORMAT = 1
DEFAULT_COMPRESS_BELOW = {False: 0.5, True: 0.85}
"""By whether the place is shared: a local disk is fast, so compression must halve a chunk to be worth the time."""


class Tier:
    """See the module. Thread-safe once open."""

    def __init__(
        self,
        medium: Medium,
        catalog: Catalog,
        *,
        budget_bytes: int | None = None,
        compress_below: float | None = None,
    ) -> None:
        """
        Args:
            budget_bytes: what may be used at most; None is no limit.
            compress_below: chunks are stored compressed if they shrink to this part of their size; 0 is never.
        """
        self.medium = medium
        self.catalog = catalog
        self.compress_below = DEFAULT_COMPRESS_BELOW[medium.shared] if compress_below is None else compress_below
        self._budget = TierBudget(medium.where, budget_bytes, lambda: catalog.bytes_of_store(self.store))
        self._lock = threading.Lock()
        self._spaces: dict[TenantName, Space] = {}
        self.store = ""
        """The place's id, once open."""

    def open(self, *, accept_loss: bool = False) -> None:
        """Take possession of the place, and make a tier of it where it is new.

        Args:
            accept_loss: whether a place that has lost all its snapshots may be used as a new one.

        Raises:
            TierWiped: snapshots known to be here are gone as a whole.
            BadInput: there is no such place. Busy: another agent has it. TierAway, TooNew, Damaged.
        """
        self.medium.open()
        try:
            self._identify(accept_loss=accept_loss)
        except BaseException:
            self.medium.close()
            raise
        self._budget.recount()

    def close(self) -> None:
        """Give the place free for others. Nothing may be reading or writing."""
        for space in self._spaces.values():
            space.close()
        self._spaces.clear()
        self.medium.close()

    def space(self, keys: Keys) -> Space:
        """A tenant's part. The first call looks at everything there, and takes a moment in a large tier.

        Raises:
            WrongKey: the tenant's snapshots here were written with another key.
        """
        with self._lock:
            space = self._spaces.get(keys.tenant)
        if space is None:
            space = Space(
                self.store,
                keys,
                medium=self.medium,
                catalog=self.catalog,
                budget=self._budget,
                compress_below=self.compress_below,
            )
            space.check_key()
            # Where others write too, packs are looked at when a snapshot needs them: there may be very many.
            space.refresh(packs_too=not self.medium.shared)
            with self._lock:
                space = self._spaces.setdefault(keys.tenant, space)
        elif space.keys.fingerprint != keys.fingerprint:
            space.check_key(keys)
        return space

    def tenants(self) -> list[TenantName]:
        """Who has, or had, snapshots here."""
        found = []
        for text in self.medium.tenants():
            try:
                found.append(tenant_name(text))
            except BadInput:
                continue  # somebody else's directory
        return found

    def usage(self) -> Usage:
        return self._budget.usage(self.medium.free_bytes())

    # -- identity ----------------------------------------------------------------------------------------------------

    def _identify(self, *, accept_loss: bool) -> None:
        known = self.catalog.store_at(self.medium.where)
        there = self._identity()
        if known is not None and there != known:
            self._report_loss(known, there, accept_loss=accept_loss)
        if there is None:
            there = self._found()
        self.store = there
        self.catalog.remember_store(self.medium.where, there)

    def _identity(self) -> str | None:
        try:
            content = self.medium.get(TIER_KEY)
        except Absent:
            return None
        try:
            record = json.loads(content)
            number, store = record["format"], record["store"]
            if not isinstance(number, int) or not isinstance(store, str) or len(bytes.fromhex(store)) != 16:
                raise ValueError("no id")
        except (ValueError, KeyError, TypeError) as e:
            raise Damaged(
                f"{self.medium.where}/{TIER_KEY} is damaged: {e}", hint="restore that file from a copy"
            ) from e
        if number > _FORMAT:
            raise TooNew(
                f"{self.medium.where} has format {number}; this version reads up to {_FORMAT}", hint="update Kybernate"
            )
        return store

    def _report_loss(self, known: str, there: str | None, *, accept_loss: bool) -> None:
        names = self.catalog.snapshots_of_store(known)
        if names and not accept_loss:
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise TierWiped(
                f"{self.medium.where} {'is empty' if there is None else 'is another store'} now; it held {len(names)}"
                f" snapshots: {shown}",
                hint="mount or restore what was there, or accept the loss",
            )
        self.catalog.forget_store(known)

    def _found(self) -> str:
        """Make a tier of a place that has no id."""
        strangers = [name for name in self.tenants() if any(True for _ in self.medium.entries(f"{name}/manifests/"))]
        if strangers:
            raise Damaged(
                f"{self.medium.where} holds snapshots (of tenant {strangers[0]}) but its file {TIER_KEY!r} is missing",
                hint=f"restore that file from a copy: {json.dumps({'format': _FORMAT, 'store': '32 hexadecimal digits'})}",
            )
        store = secrets.token_hex(16)
        try:
            if self.medium.create(TIER_KEY, json.dumps({"format": _FORMAT, "store": store}).encode()):
                return store
        except Absent as e:
            raise BadInput(f"there is no bucket at {self.medium.where}", hint="create it, or correct the URL") from e
        there = self._identity()  # another agent was quicker
        if there is None:
            raise KybernateError(f"{self.medium.where} can't be made a tier: what is written there doesn't stay")
        return there
