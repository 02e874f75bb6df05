"""The tiers below RAM as this agent has them: the store's directory and the bucket, opened when they are needed.

A tier that is away, wiped or locked with another key keeps nobody from working: it is said in `ps`, `doctor` and an event,
and by each order that needs it, and it is tried again then and now and then. Everything but `views` blocks: call it in a
thread.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kybernate.agent.tiers.credentials import CredentialsFile
from kybernate.model.api import TierView
from kybernate.model.errors import BadInput, KybernateError, NotFound, Unsupported
from kybernate.model.layout import StateDirectory
from kybernate.model.types import TierName
from kybernate.settings import ObjectSettings, StoreSettings
from kybernate.store import (
    Catalog,
    Damaged,
    Keys,
    LocalMedium,
    ObjectMedium,
    Space,
    Tier,
    TierAway,
    TierRefused,
    TierWiped,
    TooNew,
    keys_of,
    secret_from_command,
    secret_from_file,
    tenant_name,
)

log = logging.getLogger(__name__)

BELOW_RAM = (TierName.NVME, TierName.OBJECT)
"""Best first."""


def default_directory(state: StateDirectory, environment: Mapping[str, str] = os.environ) -> Path:
    """Where snapshots lie if nothing else is said. An agent with a state directory of its own has a store of its own."""
    usual = StateDirectory.default({k: v for k, v in environment.items() if not k.startswith("KYBERNATE_")})
    if state.root != usual.root:
        return state.root.with_name(f"{state.root.name}-store")
    if os.geteuid() == 0:
        return Path("/var/lib/kybernate/store")
    base = environment.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "kybernate" / "store"


@dataclass(slots=True)
class _TierSlot:
    """One tier, open or not."""

    name: TierName
    where: str
    make: Callable[[], Tier]
    state: str = "unused"
    problem: str | None = None
    tier: Tier | None = None
    space: Space | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Of opening: whoever comes second waits for the first."""


class Stores:
    """All tiers of one agent."""

    def __init__(
        self, *, settings: StoreSettings, state: StateDirectory, changed: Callable[[TierName, str | None], None]
    ) -> None:
        """Touches nothing.

        Args:
            changed: told, in any thread, when a tier becomes ready (None), or unusable and why.
        """
        self._settings = settings
        usual = default_directory(state)
        self._catalog_path = usual.with_name(f"{usual.name}.db")
        """Not in the store's own directory: should that be wiped or not be mounted, somebody must remember it."""
        self._catalog: Catalog | None = None
        self._catalog_lock = threading.Lock()
        self._changed = changed
        self._keys: Keys | None = None
        directory = settings.directory or usual
        beside = directory if directory.parent.is_dir() else usual
        mark = hashlib.sha256(os.fsencode(state.root)).hexdigest()[:8]
        self.scratch = beside.with_name(f"{beside.name}-scratch-{mark}")
        """For processes' images on their way in and out: on the disk, since they may be as large as the RAM that is used; one
        an agent, since each empties its own."""
        self._at_start = settings.directory is not None or directory.is_dir()
        self._slots = {TierName.NVME: _TierSlot(TierName.NVME, str(directory), lambda: self._local(directory))}
        if settings.object.url is not None:
            url = settings.object.url
            self._slots[TierName.OBJECT] = _TierSlot(TierName.OBJECT, url, lambda: self._object(url, settings.object))

    # -- opening -----------------------------------------------------------------------------------------------------

    def names(self) -> list[TierName]:
        """The tiers that this agent is to have, best first."""
        return [name for name in BELOW_RAM if name in self._slots]

    def open_all(self) -> None:
        """What is there already, or was asked for; failures are remembered and told."""
        for name in self.names():
            if name is TierName.NVME and not self._at_start:
                continue
            try:
                self.space(name)
            except KybernateError as e:
                log.warning("tier %s can't be used: %s", name, e)

    def space(self, name: TierName, *, accept_loss: bool = False) -> Space:
        """This agent's part of a tier, opened if need be.

        Args:
            accept_loss: take a slot that has lost all its snapshots as a new one.

        Raises:
            Unsupported: there is no such tier.
            TierAway, TierWiped, WrongKey, BadInput, Busy and others: it can't be used now.
        """
        slot = self._slots.get(name)
        if slot is None:
            raise Unsupported(f"this agent has no {name} tier", hint="set agent.store.object.url and start it again")
        with slot.lock:
            if slot.space is None:
                self._open(slot, accept_loss=accept_loss)
            assert slot.space is not None
            return slot.space

    def ready(self, name: TierName) -> Space | None:
        """The same where it is open already; never blocks."""
        slot = self._slots.get(name)
        return None if slot is None else slot.space

    def exists(self, name: TierName) -> bool:
        """Whether that tier is in use, or was asked for: the agent's own ideas make no store."""
        return self.ready(name) is not None or (name is TierName.NVME and self._at_start)

    def trouble(self, name: TierName, error: BaseException) -> None:
        """An order about that tier failed: perhaps since it doesn't answer, or another one that it needed as well."""
        if not isinstance(error, TierAway | TierWiped):
            return
        where = error.where if isinstance(error, TierAway) else None
        there = [slot for slot in self._slots.values() if slot.space and slot.space.medium.where == where]
        slot = there[0] if there else self._slots[name]
        known, slot.problem = slot.problem is not None, _problem(error)
        if not known:
            self._changed(slot.name, slot.problem)

    def ask(self) -> None:
        """Ask each tier that is in use, or was asked for, whether it answers; what it says is in `views` then."""
        for name in self.names():
            if name is TierName.NVME and not self.exists(name):
                continue
            try:
                self.space(name).refresh(packs_too=False)
            except KybernateError as e:
                self.trouble(name, e)
        self.look_again()

    def look_again(self) -> None:
        """Try what could not be used, or didn't answer."""
        for slot in self._slots.values():
            if slot.problem is None:
                continue
            try:
                space = self.space(slot.name)
                space.refresh(packs_too=False)
            except KybernateError as e:
                log.info("tier %s still can't be used: %s", slot.name, e)
                continue
            if slot.problem is not None:
                slot.problem = None
                self._changed(slot.name, None)

    def close(self) -> None:
        """Nothing may be reading or writing."""
        for slot in self._slots.values():
            if slot.tier is not None:
                slot.tier.close()
                slot.tier = slot.space = None
        if self._catalog is not None:
            self._catalog.close()

    def _open(self, slot: _TierSlot, *, accept_loss: bool) -> None:
        slot.state = "opening"
        tier: Tier | None = None
        try:
            keys = self._load_keys()
            tier = slot.make()
            tier.open(accept_loss=accept_loss)
            slot.space = tier.space(keys)
            slot.tier = tier
        except Exception as e:
            if tier is not None:
                tier.close()
            slot.state = "away"
            text = _problem(e)
            if slot.problem != text:
                slot.problem = text
                self._changed(slot.name, text)
            if not isinstance(e, KybernateError):
                raise KybernateError(f"tier {slot.name} at {slot.where} can't be opened: {text}") from e
            raise
        slot.state, slot.problem = "ready", None
        self._changed(slot.name, None)

    def _local(self, directory: Path) -> Tier:
        if self._settings.directory is None:
            try:
                directory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            except OSError as e:
                raise BadInput(f"can't make {directory.parent}: {e.strerror}", hint="set agent.store.directory") from e
        return Tier(LocalMedium(directory), self._open_catalog(), budget_bytes=self._settings.budget)

    def _object(self, url: str, settings: ObjectSettings) -> Tier:
        secret = None if settings.credentials_file is None else CredentialsFile(settings.credentials_file)
        medium = ObjectMedium(url, options=settings.options(), credentials=secret, patience_s=settings.patience)
        return Tier(medium, self._open_catalog(), budget_bytes=settings.budget)

    def _open_catalog(self) -> Catalog:
        with self._catalog_lock:
            if self._catalog is None:
                try:
                    self._catalog_path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                except OSError as e:
                    raise BadInput(f"can't make {self._catalog_path.parent}: {e.strerror}") from e
                self._catalog = Catalog(self._catalog_path)
            return self._catalog

    def _load_keys(self) -> Keys:
        """Read anew as long as no tier could be opened with it: a key that came late is found."""
        if self._keys is None:
            settings = self._settings.encryption
            secret: bytes | None = None
            if settings.key_file is not None:
                secret = secret_from_file(settings.key_file)
            elif settings.key_command:
                secret = secret_from_command(settings.key_command)
            self._keys = keys_of(tenant_name(self._settings.tenant), secret)
        return self._keys

    # -- looking -----------------------------------------------------------------------------------------------------

    def views(self) -> list[TierView]:
        """Every tier as it stands; never waits for a slot that doesn't answer."""
        return [self._view(self._slots[name]) for name in self.names()]

    def _view(self, slot: _TierSlot) -> TierView:
        state = "away" if slot.problem is not None and slot.state == "ready" else slot.state
        view = TierView(tier=slot.name, where=slot.where, state=state, problem=slot.problem)
        tier, space = slot.tier, slot.space
        if tier is None or space is None:
            return view
        usage = tier.usage()
        return view.model_copy(
            update={
                "used_bytes": usage.used,
                "budget_bytes": usage.budget,
                "free_bytes": usage.free,
                "snapshots": len(space.snapshots()),
                "encrypted": space.keys.encrypted,
            }
        )

    def find(self, snapshot: str, *, one: bool = False) -> list[TierName]:
        """The tiers that have a snapshot of this name, best first, as far as they answer; with `one`, no more than the first.

        Raises:
            NotFound: none has it, and all answered.
            what the last one said, where none has it and some didn't answer.
        """
        found: list[TierName] = []
        trouble: KybernateError | None = None
        for name in self.names():
            if one and found:
                break
            if name is TierName.NVME and not self.exists(name):
                continue
            try:
                self.space(name).manifest(snapshot)
            except NotFound:
                continue
            except (Damaged, TooNew):
                pass  # it is there, and who reads it will say what is wrong with it
            except KybernateError as e:
                trouble = e
                continue
            found.append(name)
        if found:
            return found
        if trouble is not None:
            raise trouble
        raise NotFound(f"there is no snapshot {snapshot}", hint="`kybernate snapshots` lists them")


def _problem(error: BaseException) -> str:
    """What `ps` and `doctor` show of it. Of a refusal also what to do: it ends only when somebody does."""
    if isinstance(error, TierRefused):
        return str(error)
    return error.message if isinstance(error, KybernateError) else f"{type(error).__name__}: {error}"
