"""Serving as the rest of the agent sees it: made from the configuration, started with the agent, asked by switching before a pause.

Wires the parts: who is connected (workers), what they may forward to (gates), how much is asked (loads), who decides (controller),
who is started and how (coming), which processes the activator has (processes).
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from kybernate.agent.gear import Gear
from kybernate.agent.orders.images import Images
from kybernate.agent.orders.ready import for_everybody
from kybernate.agent.orders.snapshot_catalog import SnapshotCatalog
from kybernate.agent.orders.switching import Switching
from kybernate.agent.records.database import Database
from kybernate.agent.records.ledger import Entry
from kybernate.agent.serving.bringup import Coming
from kybernate.agent.serving.configuration import Configured, configured, kinds, settings_changed
from kybernate.agent.serving.controller import Controller
from kybernate.agent.serving.gpu_usage import Accounts
from kybernate.agent.serving.leases import Came, Gates
from kybernate.agent.serving.processes import Places, Processes
from kybernate.agent.serving.staging import Pool, Staging
from kybernate.agent.serving.worker_load import Loads
from kybernate.agent.serving.workers import Workers
from kybernate.agent.serving.workload_stats import Memories
from kybernate.agent.tiers.pool_eviction import PoolEviction
from kybernate.agent.vram.victims import VictimPolicy
from kybernate.agent.workloads.orders import Stored
from kybernate.agent.workloads.tasks import Tasks
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.doctor.config_lint import too_large
from kybernate.model.api import StoppedView
from kybernate.model.api_serving import ReloadView
from kybernate.model.errors import BadInput, Busy, Conflict, KybernateError, NotFound
from kybernate.model.messages import Configure, Drained, Hello, Load, Status
from kybernate.model.types import EndedBy, TierName, WorkloadName, WorkloadState
from kybernate.settings import AgentSettings, Settings, load
from kybernate.settings.differences import differing
from kybernate.settings.specs import Kind, Served
from kybernate.settings.vram_hints import VISIBLE

log = logging.getLogger(__name__)

_MEET_S = 3.0
"""How long a predecessor's workers may take to say what they forward to, before anything is decided."""


class Serving:
    """Also the gate that switching asks, and who hears the workers. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        gear: Gear,
        workloads: Workloads,
        switching: Switching,
        library: SnapshotCatalog,
        images: Images,
        pool_eviction: PoolEviction,
        database: Database,
        tasks: Tasks,
        pool: Pool | None,
        file: Path | None,
    ) -> None:
        self._gear = gear
        self._workloads = workloads
        self._tasks = tasks
        self._file = file
        root = gear.state.root
        self.places = Places(
            socket=root / "activator.sock",
            record=root / "activator.json",
            log=root / "activator.log",
            metrics=root / "activator-metrics",
        )
        self.loads = Loads()
        self.workers = Workers(path=self.places.socket, tasks=tasks)
        self.gates = Gates(workers=self.workers, loads=self.loads, clock=gear.clock)
        self.memories = Memories(database)
        self.accounts = Accounts(self.memories)
        self.processes = Processes(
            places=self.places, workers=self.workers, events=gear.events, tasks=tasks, clock=gear.clock
        )
        self.staging = Staging(
            gear=gear, pool=pool, switching=switching, tasks=tasks, wake=lambda: self.controller.wake()
        )
        self._coming = Coming(
            gear=gear,
            workloads=workloads,
            switching=switching,
            library=library,
            images=images,
            pool_eviction=pool_eviction,
            gates=self.gates,
            memories=self.memories,
        )
        self.controller = Controller(
            gear=gear,
            workloads=workloads,
            switching=switching,
            coming=self._coming,
            gates=self.gates,
            loads=self.loads,
            memories=self.memories,
            accounts=self.accounts,
            staging=self.staging,
            tasks=tasks,
        )
        self._configured = Configured(Settings(), {}, (), None)
        self._began_with = AgentSettings()
        """What the file said of the agent itself when it began."""
        self._said: dict[WorkloadName, Status] = {}
        self._active = False
        self._observing = False
        """What the recovery finds isn't what happens."""
        self._reloading = asyncio.Lock()
        self.controller.housekeeping.pardoned = self._pardoned
        self.gates.changed = self._tell_status

    @property
    def victim_policy(self) -> VictimPolicy | None:
        """Who chooses victims: from the first model or job on the policy does."""
        return self.controller if self._active else None

    @property
    def settings(self) -> Settings:
        return self._configured.settings

    def advice(self) -> list[str]:
        """What in the file is most likely not meant so, on this machine; a line each."""
        return self._advice(self._configured)

    def _advice(self, said: Configured) -> list[str]:
        capacity = self.controller.looking.look().capacity
        return [*said.advice, *too_large(said.served.values(), capacity, os.environ.get(VISIBLE))]

    # -- its life ----------------------------------------------------------------------------------------------------

    async def start(self, first: Configured) -> None:
        """After the recovery of the workloads, before the API answers."""
        await in_thread("remember", self.memories.load)
        self._observing = True
        self._began_with = first.settings.agent
        self._apply(first)
        self.controller.take_over()
        await self.workers.listen(self)
        adopted = self.processes.adopt()
        self.gates.expect(adopted)
        self._want_workers()
        self._begin_when_needed()
        if self._file is not None:
            for name in self._no_longer_named():
                self._tasks.start(self._stop(name), name=f"take out {name}")
        self._tasks.keep(self._take_over, name="serving")

    async def end(self) -> None:
        """The agent goes down: answers under way get their time, what is held is told to come again."""
        self.accounts.write(self._gear.clock())
        if self.processes.address is not None:
            await self.processes.end(grace_s=self.settings.activator.grace)
        await self.workers.close()

    async def reload(self) -> ReloadView:
        """Read the file again; nothing changes if it makes no sense.

        Raises:
            BadInput: it was started without a file, or there is something wrong with it.
        """
        if self._file is None:
            raise BadInput("this agent was started without a file", hint="start it with `kybernate up -f FILE`")
        file = self._file
        async with self._reloading:
            try:
                wanted = await in_thread("reload", lambda: configured(load(file)))
            except KybernateError as e:
                self._gear.events.record("reload-refused", f"nothing was changed: {e.message}")
                raise
            view = self._compare(wanted)
            await self._take_out([WorkloadName(name) for name in view.removed])
            self._apply(wanted)
            self._want_workers()
            self._begin_when_needed()
        said = ", ".join(f"{kind} {' '.join(names)}" for kind, names in kinds(view) if names)
        self._gear.events.record("reloaded", f"{file}: {said or 'nothing has changed'}", data=view.model_dump())
        return view

    def begin(self, name: WorkloadName) -> None:
        """A person wants a model or a job of the file to run.

        Raises:
            NotFound: the file names none.
            Conflict: it runs, or a person paused it.
            Busy: the agent starts nothing any more.
        """
        self._gear.starts.refuse()
        if name not in self._configured.served:
            raise NotFound(f"no model or job is called {name!r}", hint="`kybernate models` lists them")
        entry = self._gear.ledger.get(name)
        if entry is not None and not entry.ended:
            hint = (
                f"`kybernate resume {name}`" if entry.state is WorkloadState.PAUSED else f"`kybernate explain {name}`"
            )
            raise Conflict(f"{name} is {entry.state} already", hint=hint)
        self.controller.asked_for(name)

    async def stop(
        self, name: WorkloadName, *, grace_s: float, remove: bool = False, stored: Stored | None = None
    ) -> StoppedView:
        """A person ends a workload. A job isn't started again before a person says so or its program is changed; a model is by
        the first request that comes after its end.

        Args:
            stored: what becomes of one that lies below RAM. None: it stays there unless it is to be removed, a model for the
                first request that comes, others until a person resumes them.

        Raises what `Workloads.stop` does.
        """
        served = self._configured.served.get(name)
        if stored is None:
            is_model = served is not None and served.kind is Kind.MODEL
            stored = Stored.ENDS if remove else Stored.STAYS if is_model else Stored.HELD
        self.controller.stopping(name)
        if self._gear.ledger.get(name) is None and name in self._configured.served:
            view = StoppedView(workload=name, exit_status=None, removed=remove, note="it was not started yet")
        else:
            try:
                view = await self._gear.ending.stop(
                    name, grace_s=grace_s, remove=remove, by=EndedBy.ORDER, stored=stored
                )
            except KybernateError:
                self.controller.stopped(name)  # it may end later, and is then as one that was stopped
                raise
        # Whoever waited for it until now is told so, and whoever comes from now on is waited for.
        self.gates.refuse(name, message=f"{name} was stopped by order", retry_after_s=None)
        self.controller.stopped(name)
        if self.gates.pardon(name):
            self._pardoned(name)
        return view

    # -- what switching asks -----------------------------------------------------------------------------------------

    async def close(self, name: WorkloadName, *, timeout_s: float, by_arbiter: bool) -> None:
        preempt = by_arbiter and self.controller.preempts(name)
        try:
            await self.gates.close(name, timeout_s=timeout_s, preempt=preempt)
        except Busy:
            self._reopen(name)
            raise

    def hold(self, name: WorkloadName) -> None:
        self.gates.hold(name)

    def stays(self, name: WorkloadName) -> None:
        self._reopen(name)

    def came(self, name: WorkloadName, *, tier: str, seconds: float, victims: tuple[WorkloadName, ...]) -> None:
        self.controller.came(name, TierName(tier), seconds)
        served = self.controller.served.get(name)
        if served is None or served.probe is None or self.controller.starting(name):
            return
        came = Came(tier, seconds, victims)
        if self.memories.of(name).was_ready:
            self._open(name, came)
        else:
            self._tasks.start(self._probe(served, came), name=f"ready {name}")

    def asked_for(self, name: WorkloadName) -> None:
        self.controller.asked_for(name)

    def port_of(self, name: WorkloadName) -> int | None:
        served = self._configured.served.get(name)
        return None if served is None or served.endpoint is None else served.endpoint.port

    async def before_stop(self, name: WorkloadName, grace_s: float) -> None:
        """A person ends a model: requests in flight get its grace, also those that somebody else lets end already."""
        try:
            await self.gates.close(name, timeout_s=grace_s)
        except Busy as e:
            log.info("workload %s is stopped all the same: %s", name, e)
            self.gates.gone(name)
        except asyncio.CancelledError:  # its grace was cut short
            self.gates.gone(name)
            raise

    # -- what workers say --------------------------------------------------------------------------------------------

    def hello(self, pid: int, hello: Hello) -> None:
        self.workers.tell(pid, self._configure())
        for name in self.gates.hello(pid, hello.open_epochs):
            entry = self._gear.ledger.get(name)
            if entry is not None and entry.state is WorkloadState.RUNNING and self._workloads.idle(name):
                # Its predecessor's word: it could be asked then, and it ran on.
                self._open(name, None)
            else:
                self.gates.close_at(pid, name)
        for status in self._said.values():
            self.workers.tell(pid, status)
            if (refusal := self.gates.refusal(WorkloadName(status.model))) is not None:
                self.workers.tell(pid, refusal)  # which the status took back
        self.controller.wake()

    def load(self, pid: int, load: Load) -> None:
        name = WorkloadName(load.model)
        self.loads.heard(pid, load, self._gear.clock())
        self.gates.share(name)
        self.controller.wake()

    def drained(self, pid: int, drained: Drained) -> None:
        self.gates.drained(pid, drained.model, drained.epoch)

    def gone(self, pid: int) -> None:
        self.loads.gone(pid)
        self.gates.worker_gone(pid)
        self.controller.wake()

    # -- the configuration -------------------------------------------------------------------------------------------

    def _apply(self, wanted: Configured) -> None:
        self._configured = wanted
        for served in wanted.served.values():
            if served.endpoint is not None:
                self.gates.serve(served.name, concurrency=served.endpoint.limits.concurrency)
            self.memories.update(served.name, klass=str(served.klass))
        self.staging.configure(wanted.settings.serving.staging.budget)
        self.controller.configure(wanted.served, wanted.settings.serving)
        self.workers.tell_all(self._configure())
        self._tell_statuses()

    def _configure(self) -> Configure:
        activator = self.settings.activator
        limits = activator.limits
        served = self._configured.served.values()
        return Configure(
            endpoints=tuple(each.endpoint for each in served if each.endpoint is not None),
            keys=self._configured.keys,
            hosts=self._configured.hosts,
            origins=("*",) if activator.origins == "any" else activator.origins,
            upstream=activator.upstream,
            heartbeat_s=activator.heartbeat,
            body_max=limits.body,
            held_max=limits.held,
            held_bytes_max=limits.held_bytes,
            idle_s=limits.idle,
            record=None if activator.record is None else str(activator.record),
        )

    def _compare(self, wanted: Configured) -> ReloadView:
        old, new = self._configured, wanted
        both = [name for name in new.served if name in old.served]
        restart = differing(self._began_with, new.settings.agent, under="agent")
        notes = [f"{', '.join(restart)}: holds once the agent is started again"] if restart else []
        return ReloadView(
            added=sorted(new.served.keys() - old.served.keys()),
            removed=sorted(old.served.keys() - new.served.keys()),
            changed=sorted(name for name in both if old.served[name] != new.served[name]),
            restarting=sorted(name for name in both if old.served[name].fingerprint != new.served[name].fingerprint),
            settings=settings_changed(old, new),
            notes=notes,
            advice=self._advice(new),
        )

    async def _take_out(self, names: list[WorkloadName]) -> None:
        """Models and jobs that the file no longer names: what is in flight ends, then they do."""

        async def one(name: WorkloadName) -> None:
            grace = self.settings.activator.grace
            try:
                await self.gates.close(name, timeout_s=grace)
            except Busy as e:
                log.warning("workload %s is taken out all the same: %s", name, e)
                self.gates.gone(name)
            self._said.pop(name, None)
            self._tasks.start(self._stop(name), name=f"take out {name}")

        await asyncio.gather(*(one(name) for name in names))
        for name in names:
            self.gates.drop(name)

    def _no_longer_named(self) -> list[WorkloadName]:
        """What an earlier agent began by its file, and this one's doesn't name."""
        remembered = self.memories.all().items()
        return [name for name, memory in remembered if memory.fingerprint and name not in self._configured.served]

    async def _stop(self, name: WorkloadName) -> None:
        entry = self._gear.ledger.get(name)
        self.memories.update(name, fingerprint="", done=False)  # should it be named again, it begins anew
        if entry is None or entry.ended:
            return
        self._gear.events.record("reconfigured", "ended, since the file no longer names it", workload=name)
        try:
            await self._gear.ending.stop(name, grace_s=10.0, remove=False)
        except KybernateError as e:
            log.warning("workload %s, which the file no longer names: %s", name, e)

    def _want_workers(self) -> None:
        self.processes.want(self._configured.address, grace_s=self.settings.activator.grace)

    def _begin_when_needed(self) -> None:
        """With the first model or job the policy takes over who has the VRAM."""
        if self._active or not self._configured.served:
            return
        self._active = True
        self._tasks.keep(self._decide, name="controller")

    async def _decide(self) -> None:
        await self.gates.meet(_MEET_S)
        await self.controller.run()

    # -- models ------------------------------------------------------------------------------------------------------

    async def _take_over(self) -> None:
        """What runs already, and no worker said to be open, is asked whether it is ready."""
        await self.gates.meet(_MEET_S)
        for name, served in self._configured.served.items():
            entry = self._gear.ledger.get(name)
            if entry is None or entry.state is not WorkloadState.RUNNING:
                continue
            if served.probe is not None and not self.gates.is_open(name):
                self._tasks.start(self._probe(served, None), name=f"ready {name}")
            self.controller.up(name)

    async def _probe(self, served: Served, came: Came | None) -> None:
        """It runs, and nobody knows whether it may be asked yet."""
        assert served.probe is not None
        try:
            if not await self._coming.wait_ready(served, served.probe):
                return  # it was paused; its resume asks again
        except KybernateError as e:
            self._gear.events.record("not-ready", for_everybody(e), workload=served.name)
            return
        self._open(served.name, came)

    def _open(self, name: WorkloadName, came: Came | None) -> None:
        self._coming.opened(name, came)
        self.controller.up(name)

    def _reopen(self, name: WorkloadName) -> None:
        entry = self._gear.ledger.get(name)
        if entry is not None and entry.state is WorkloadState.RUNNING:
            self.gates.reopen(name)

    def changed(self, old: Entry | None, new: Entry | None) -> None:
        """Observer of the ledger."""
        if not self._observing:
            return
        name = new.name if new is not None else old.name if old is not None else None
        if name is not None and (new is None or new.ended):
            self.gates.gone(name)
        self.staging.changed(old, new)
        self.controller.changed(old, new)
        self._tell_statuses()

    def _pardoned(self, name: WorkloadName) -> None:
        status = self._said[name] = self._status(name)
        self.workers.tell_all(status)

    def keeps_in_ram(self, name: WorkloadName) -> bool:
        served = self._configured.served.get(name)
        return served is not None and served.lowest_tier is TierName.RAM

    def _tell_statuses(self) -> None:
        for name in self._configured.served:
            self._tell_status(name)

    def _tell_status(self, name: WorkloadName) -> None:
        """What workers say of a model, if that has changed."""
        served = self._configured.served.get(name)
        if served is None or served.kind is not Kind.MODEL:
            return
        status = self._status(name)
        if self._said.get(name) == status:
            return
        self._said[name] = status
        self.workers.tell_all(status)
        if (refusal := self.gates.refusal(name)) is not None:
            self.workers.tell_all(refusal)  # which the status took back

    def _status(self, name: WorkloadName) -> Status:
        entry = self._gear.ledger.get(name)
        if entry is None or entry.ended:
            return Status(model=name, state="stopped", expected_s=self._expected(name))
        paused = entry.state is WorkloadState.PAUSED
        tier = str(entry.tier) if paused else "vram"
        return Status(model=name, state=str(entry.state), tier=tier, expected_s=self._expected(name))

    def _expected(self, name: WorkloadName) -> float | None:
        if self.gates.is_open(name):
            return 0.0
        return round(self.controller.looking.member(name).cost.come, 1)
