"""Writers and garbage collectors of several agents in one place: who writes says so, who collects asks first.

A writer puts a *lease* there before it looks at what it may share, and touches it every minute. A collector puts the
*sweep* there (only one can), then looks for leases: any that isn't stale means Busy. A writer looks for the sweep after it
has put its lease: so at least one of the two sees the other. Times are those of the place itself, never a clock of ours.

A lease that wasn't touched for a quarter of an hour is of a dead agent. Should its agent live and only have stood still,
it notices when it commits (`Lease.check`), before and after: its snapshot is then given up. Of an agent that died on this
very machine that is known at once, so the next one needn't wait for a quarter of an hour.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Protocol, runtime_checkable

from kybernate.model.errors import Busy, KybernateError
from kybernate.store.media import Absent, Medium
from kybernate.store.tenants import TenantName

log = logging.getLogger(__name__)

STALE_S = 900.0
TOUCH_S = 60.0
LEFT_S = 3.0
"""A released one that could not be deleted hinders other agents: that is tried again so often."""
_SWEEP = "sweep"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@runtime_checkable
class SharedMedium(Medium, Protocol):
    """A medium that several agents use at once."""

    def replace(self, key: str, content: bytes) -> None:
        """Put a small thing there, whatever is there; its time is new."""


class Lease:
    """The right to write, or to sweep. Made by `Leases`."""

    def __init__(self, owner: Leases, key: str, content: bytes) -> None:
        self._owner = owner
        self.key = key
        self.content = content
        self.touched = time.monotonic()
        self.lost = False

    def check(self) -> None:
        """Raises Busy when the right was lost, because this agent stood still for too long."""
        self._owner.touch(self)
        if self.lost:
            raise Busy("this agent stood still for so long that others took its place for dead", hint="try again")

    def release(self) -> None:
        self._owner.release(self)


class Leases:
    """Of one tenant in one place. Thread-safe."""

    def __init__(
        self, medium: Medium, tenant: TenantName, *, stale_s: float = STALE_S, touch_s: float = TOUCH_S
    ) -> None:
        self._medium = medium
        self._prefix = f"{tenant}/leases/"
        self._stale_s = stale_s
        self._touch_s = touch_s
        self._held: dict[str, Lease] = {}
        self._left: set[str] = set()
        """Released ones that could not be deleted, since the place didn't answer."""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> Lease:
        """The right to write a snapshot. Raises Busy while another agent collects garbage."""
        lease = self._put(secrets.token_hex(16))
        try:
            sweep = self._there().get(_SWEEP)
            if sweep is not None and self._prefix + _SWEEP not in self._held:
                if self._now(lease) - sweep < self._stale_s and not self._dead(_SWEEP):
                    raise Busy(f"another agent collects garbage in {self._medium.where}", hint="try again in a minute")
                self._medium.delete(self._prefix + _SWEEP)
        except BaseException:
            self.release(lease)
            raise
        return lease

    def sweep(self) -> Lease:
        """The right to collect garbage. Raises Busy while another agent writes or collects."""
        key = self._prefix + _SWEEP
        content = self._content()
        if not self._medium.create(key, content):
            mark = self._put(secrets.token_hex(16))  # tells what time it is there
            try:
                there = self._there().get(_SWEEP)
                if there is not None:
                    if self._now(mark) - there < self._stale_s and not self._dead(_SWEEP):
                        raise Busy(
                            f"another agent collects garbage in {self._medium.where}", hint="try again in a minute"
                        )
                    self._medium.delete(key)
            finally:
                self.release(mark)
            if not self._medium.create(key, content):
                raise Busy(f"another agent collects garbage in {self._medium.where}", hint="try again in a minute")
        lease = self._hold(Lease(self, key, content))
        try:
            there_now = self._there()
            now = there_now.get(_SWEEP, time.time())
            for name, modified in there_now.items():
                if name == _SWEEP or self._prefix + name in self._held:
                    continue
                if now - modified < self._stale_s and not self._dead(name):
                    raise Busy(
                        f"another agent writes to {self._medium.where}: {self._who(name)}", hint="try again later"
                    )
                self._medium.delete(self._prefix + name)
        except BaseException:
            self.release(lease)
            raise
        return lease

    def touch(self, lease: Lease) -> None:
        """Say that its holder lives; finds out whether it was taken away."""
        if not isinstance(self._medium, SharedMedium):
            raise TypeError(f"{self._medium.where} isn't shared")
        try:
            there = self._medium.get(lease.key)
        except Absent:
            there = b""
        if there != lease.content or time.monotonic() - lease.touched > self._stale_s / 2:
            lease.lost = True
            return
        self._medium.replace(lease.key, lease.content)
        lease.touched = time.monotonic()

    def release(self, lease: Lease) -> None:
        with self._lock:
            if self._held.pop(lease.key, None) is None:
                return
        try:
            if not lease.lost:
                self._medium.delete(lease.key)
        except KybernateError as e:
            log.warning("a lease in %s can't be removed yet: %s", self._medium.where, e)
            with self._lock:
                self._left.add(lease.key)

    def close(self) -> None:
        """Stop touching. What is still held becomes stale by itself."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    # -- the parts ---------------------------------------------------------------------------------------------------

    def _content(self) -> bytes:
        return json.dumps(_this_process() | {"once": secrets.token_hex(8)}).encode()

    def _put(self, name: str) -> Lease:
        lease = Lease(self, self._prefix + name, self._content())
        self._medium.create(lease.key, lease.content)
        return self._hold(lease)

    def _hold(self, lease: Lease) -> Lease:
        with self._lock:
            self._held[lease.key] = lease
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep, name="kybernate-leases", daemon=True)
                self._thread.start()
        return lease

    def _there(self) -> dict[str, float]:
        return {entry.name: entry.modified for entry in self._medium.entries(self._prefix)}

    def _now(self, lease: Lease) -> float:
        """What time it is there, by something just put."""
        return self._there().get(lease.key.removeprefix(self._prefix), time.time())

    def _who(self, name: str) -> str:
        try:
            record = json.loads(self._medium.get(self._prefix + name))
            return f"process {int(record['pid'])} on {str(record['host'])[:64]}"
        except (Absent, ValueError, KeyError, TypeError):
            return "somebody"

    def _dead(self, name: str) -> bool:
        """Whether nobody holds it, for certain: we released it, or its process lived on this machine and is gone."""
        if self._prefix + name in self._left:
            return True
        try:
            record = json.loads(self._medium.get(self._prefix + name))
            return isinstance(record, dict) and _has_died(record)
        except Absent:
            return True
        except ValueError:
            return False

    def _keep(self) -> None:
        touch_at = time.monotonic() + self._touch_s
        while not self._stop.wait(min(LEFT_S, self._touch_s)):
            with self._lock:
                held, left = list(self._held.values()), list(self._left)
            for key in left:
                try:
                    self._medium.delete(key)
                except KybernateError:
                    continue  # the next time
                with self._lock:
                    self._left.discard(key)
            if time.monotonic() < touch_at:
                continue
            touch_at = time.monotonic() + self._touch_s
            for lease in held:
                try:
                    self.touch(lease)
                except KybernateError as e:
                    log.warning("can't touch a lease in %s: %s", self._medium.where, e)


def _this_process() -> dict[str, str | int]:
    """Who we are, so that another process here can tell whether we live."""
    return {
        "host": socket.gethostname(),
        "boot": _read(_BOOT).strip(),
        "processes": os.readlink("/proc/self/ns/pid"),  # noqa: PTH115 - "pid:[1]" is no path
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
    }


def _has_died(record: dict[str, object]) -> bool:
    """False where that can't be known: it lived on another machine, or in another container."""
    own = _this_process()
    if not own["boot"] or any(record.get(key) != own[key] for key in ("boot", "processes")):
        return False
    pid, started = record.get("pid"), record.get("started")
    return isinstance(pid, int) and isinstance(started, int) and _start_time(pid) != started


def _start_time(pid: int) -> int:
    """Of a process, in ticks since the boot; 0: there is none."""
    text = _read(Path(f"/proc/{pid}/stat"))
    return int(text.rpartition(")")[2].split()[19]) if text else 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
