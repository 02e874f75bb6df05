"""One round: the steps of a plan happen to a world, and after each of them everything must be as it should.

What is known of a workload is little, and enough: how far it has come at least, and whether something was done that may have
ended it. The workloads compare all of their memory in every step, so one that goes on is exact.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.agent.conftest import AgentProcess
from tests.conftest import SLOWER
from tests.soak import remains
from tests.soak.plan import Fault, Order, Step
from tests.soak.world import World

from kybernate.client import Client
from kybernate.model.api import SnapshotRequest, WorkloadView
from kybernate.model.errors import AgentAway, Busy, KybernateError, NotFound, WorkloadLost
from kybernate.model.types import MIB, TierName, WorkloadState

SIZES = (6 * MIB, 10 * MIB, 20 * MIB)
MOST_WORKLOADS = 5
HANG_S = 120.0 * SLOWER
"""No order takes that long by itself; the patience with a bucket is a second."""
NEVER = ("damaged", "tier_wiped", "wrong_key", "too_new", "internal")
"""Codes of errors that nothing in a plan is a reason for."""
_LOOK_S = 0.05
_NOT_BEGUN = "nobody knows whether it began"


class Wrong(Exception):
    """Something that must not happen has happened."""


@dataclass(slots=True)
class Known:
    """What we know of a workload."""

    name: str
    agent: int
    least: int = 0
    """Steps that it has done for sure."""
    read: str = ""
    """Its output as we saw it last."""
    may_end: str = ""
    """What was done that may have ended it."""


@dataclass(frozen=True, slots=True)
class Image:
    name: str
    least: int


@dataclass(frozen=True, slots=True)
class Task:
    label: str
    run: Callable[[], None]
    known: Known | None = None


class Walk:
    """`play` each step, then `settle`. Both raise Wrong."""

    def __init__(self, world: World, *, say: Callable[[str], None]) -> None:
        self._world = world
        self._say = say
        self._known: dict[str, Known] = {}
        self._images: dict[str, Image] = {}
        self._numbers = iter(range(1, 1 << 30))
        self._rebooted = False
        self._before = remains.Before.of(world)

    # -- a step ------------------------------------------------------------------------------------------------------

    def play(self, step: Step) -> None:
        tasks = [task for order in step.orders if (task := self._task(*order)) is not None]
        deaths = self._world.deaths
        wrong: list[BaseException] = []

        def obey(task: Task) -> None:
            try:
                self._obey(task, deaths)
            except BaseException as e:
                wrong.append(e)

        threads = [threading.Thread(target=obey, args=(task,), name=task.label, daemon=True) for task in tasks]
        for thread in threads:
            thread.start()
        if step.fault is not Fault.NONE:
            self._happen(step, [task.known for task in tasks if task.known is not None])
        deadline = time.monotonic() + HANG_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise Wrong(f"`{thread.name}` hangs")
        if wrong:
            raise wrong[0]
        if step.heal:
            self._world.heal()
        self._look()

    def _obey(self, task: Task, deaths: int) -> None:
        began = time.monotonic()
        try:
            task.run()
            self._say(f"    {task.label}: done, {time.monotonic() - began:.2f} s")
        except AgentAway as e:
            self._say(f"    {task.label}: {e}")
            if self._world.deaths == deaths:
                raise Wrong(f"`{task.label}`: the agent went away by itself: {e}") from e
        except KybernateError as e:
            self._say(f"    {task.label}: {type(e).__name__} after {time.monotonic() - began:.2f} s: {e}")
            if e.code in NEVER or "internal error" in e.message:
                raise Wrong(f"`{task.label}`: {e.code}: {e}") from e

    # -- orders ------------------------------------------------------------------------------------------------------

    def _task(self, kind: Order, which: int, tier: TierName) -> Task | None:
        """None: there is nothing to do it to."""
        below = TierName.NVME if tier is TierName.RAM else tier
        if kind is Order.RUN:
            return self._run(which)
        if kind in (Order.VERIFY, Order.GC):
            return self._on_store(kind, which % 2)
        if kind in (Order.CLONE, Order.REMOVE_IMAGE):
            return self._on_image(kind, which)
        if not self._known:
            return None
        known = list(self._known.values())[which % len(self._known)]
        name = known.name
        if kind is Order.STOP:
            before, known.may_end = known.may_end, "stopped"

            def stop(client: Client) -> None:
                if client.stop(name, grace_s=5).stays is not None:
                    known.may_end = before

            return self._ask(known, f"stop {name}", stop)
        if kind is Order.SNAPSHOT:
            return self._snapshot(known, below)
        if kind is Order.ELSEWHERE:
            return self._elsewhere(known)
        orders: dict[Order, tuple[str, Callable[[Client], object]]] = {
            Order.PAUSE: (f"pause {name} --tier {tier}", lambda client: client.pause(name, tier=tier)),
            Order.RESUME: (f"resume {name}", lambda client: client.resume(name, timeout_s=5)),
            Order.MOVE: (f"move {name} --tier {below}", lambda client: client.move(name, below)),
            Order.KEEP: (f"move {name} --tier {below} --keep", lambda client: client.move(name, below, keep=True)),
            Order.PREFETCH: (f"prefetch {name}", lambda client: client.prefetch(name)),
        }
        return self._ask(known, *orders[kind])

    def _ask(self, known: Known, label: str, call: Callable[[Client], object]) -> Task:
        agent = self._world.agents[known.agent]

        def run() -> None:
            with _client(agent) as client:
                call(client)

        return Task(label, run, known)

    def _run(self, which: int) -> Task | None:
        if len(self._known) >= MOST_WORKLOADS:
            return None
        number = next(self._numbers)
        known = Known(f"w{number}", which % 2, may_end=_NOT_BEGUN)
        self._known[known.name] = known

        def run() -> None:
            self._world.agents[known.agent].run_cuda(
                known.name, bytes_=SIZES[which % len(SIZES)], seed=number, noise=which % 4 > 0
            )
            known.may_end = known.may_end.removeprefix(_NOT_BEGUN)

        return Task(f"run {known.name} on {'ab'[known.agent]}", run, known)

    def _on_store(self, kind: Order, agent: int) -> Task:
        def run() -> None:
            with _client(self._world.agents[agent]) as client:
                if kind is Order.GC:
                    client.collect()
                    return
                for view in client.verify():
                    if view.problems:
                        raise Wrong(f"verify of {view.tier} by {'ab'[agent]}: {view.problems}")

        return Task(f"{kind} by {'ab'[agent]}", run)

    def _on_image(self, kind: Order, which: int) -> Task | None:
        if not self._images or (kind is Order.CLONE and len(self._known) >= MOST_WORKLOADS):
            return None
        image = list(self._images.values())[which % len(self._images)]
        agent = self._world.agents[which % 2]
        if kind is Order.REMOVE_IMAGE:
            del self._images[image.name]

            def remove() -> None:
                with _client(agent) as client:
                    client.remove_snapshot(image.name)

            return Task(f"rm-snapshot {image.name} by {'ab'[which % 2]}", remove)
        name = f"c{next(self._numbers)}"
        known = Known(name, which % 2, least=image.least, may_end=_NOT_BEGUN)
        self._known[name] = known

        def clone() -> None:
            with _client(agent) as client:
                client.clone(image.name, name, timeout_s=5)
            known.may_end = known.may_end.removeprefix(_NOT_BEGUN)

        return Task(f"clone {image.name} {name} on {'ab'[which % 2]}", clone, known)

    def _snapshot(self, known: Known, tier: TierName) -> Task:
        image = Image(f"i{next(self._numbers)}", known.least)

        def take(client: Client) -> None:
            client.snapshot(known.name, SnapshotRequest.of(image=image.name, tier=tier))
            self._images[image.name] = image

        return self._ask(known, f"snapshot {known.name} --as {image.name} --tier {tier}", take)

    def _elsewhere(self, known: Known) -> Task | None:
        """Only of what lies in the bucket alone: of two equal copies each agent may resume its own."""
        other = self._world.agents[1 - known.agent]
        with contextlib.suppress(KybernateError), _client(self._world.agents[known.agent]) as client:
            view = client.workload(known.name)
            copies = [each.tiers for each in client.snapshots().snapshots if each.name == view.snapshot]
            if view.tier != TierName.OBJECT or copies != [[TierName.OBJECT]]:
                return None

            def run() -> None:
                with _client(other) as client:
                    client.resume(known.name, timeout_s=5)

            return Task(f"resume {known.name} on the other", run, known)
        return None

    # -- faults ------------------------------------------------------------------------------------------------------

    def _happen(self, step: Step, concerned: list[Known]) -> None:
        world, fault = self._world, step.fault
        agent = concerned[0].agent if concerned else step.number % 2
        if fault in (Fault.KILL_CRIU, Fault.KILL_DUMPER):
            found = world.kill_helper(fault is Fault.KILL_DUMPER, step.delay_s / 20)
            self._say(f"  {fault}: {found}")
            if found is not None and fault is Fault.KILL_CRIU and found[1] == "dump" and found[0] in self._known:
                self._known[found[0]].may_end = "CRIU was killed while it dumped it"
            return
        time.sleep(step.delay_s)  # the moment is the point
        self._say(f"  {fault} {'ab'[agent]}")
        if fault is Fault.KILL_AGENT:
            world.restart(agent)
        elif fault is Fault.END_AGENT:
            world.restart(agent, kill=False)
        elif fault is Fault.REBOOT:
            self._reboot(agent, concerned)
        elif fault is Fault.DISK_FULL:
            world.fill_disk(agent)
        elif fault in (Fault.KILL_WORKLOAD, Fault.KILL_SUPERVISOR):
            for known in concerned[:1]:
                known.may_end = "killed"
                world.kill_workload(known.agent, known.name, supervisor=fault is Fault.KILL_SUPERVISOR)
        else:
            world.break_server(fault)

    def _reboot(self, agent: int, concerned: list[Known]) -> None:
        """What was parked, with nobody at work on it, stays; anything else may have only an older snapshot, or nothing."""
        self._rebooted = True
        safe = set()
        for view in self._world.agents[agent].client.workloads():
            if view.tier in (TierName.NVME, TierName.OBJECT) and view.operation is None and view.paused_by == "user":
                safe.add(view.name)
        self._world.reboot(agent)
        for known in self._known.values():
            if known.agent != agent:
                continue
            known.read = ""
            if known.name not in safe or known in concerned:
                known.may_end, known.least = "rebooted", 0

    # -- looking -----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Every workload is where it should be, goes on from where it was, and found nothing wrong."""
        for known in list(self._known.values()):
            views = [self._view(agent, known.name) for agent in self._world.agents]
            other = views[1 - known.agent]
            if other is not None and other.tier in ("vram", "ram") and other.state is not WorkloadState.STARTING:
                known.agent = 1 - known.agent
            view = views[known.agent]
            if view is None:
                continue  # it lies in the bucket, of which the agent has heard nothing, or never began
            if view.state in (WorkloadState.EXITED, WorkloadState.LOST):
                self._ended(known, view)
            elif view.tier in ("vram", "ram"):
                self._read(known)

    def _view(self, agent: AgentProcess, name: str) -> WorkloadView | None:
        try:
            return agent.client.workload(name)
        except NotFound:
            return None

    def _ended(self, known: Known, view: WorkloadView) -> None:
        self._read(known)
        if not known.may_end:
            raise Wrong(
                f"{known.name} is {view.state} (status {view.exit_status}): {view.reason}; {known.read[-500:]!r}"
            )
        self._say(f"  {known.name} is {view.state}, {known.may_end}: {view.reason}")
        self._world.agents[known.agent].client.stop(known.name, remove=True)
        del self._known[known.name]

    def _read(self, known: Known) -> None:
        """Its output, the news of it first."""
        try:
            text = b"".join(self._world.agents[known.agent].client.logs(known.name)).decode(errors="replace")
        except NotFound:
            return
        whole = text[: text.rfind("\n") + 1]
        news = whole.removeprefix(known.read)
        known.read = whole
        if "MISMATCH" in news or "Traceback" in news:
            raise Wrong(f"{known.name} found: {news[-1000:]}")
        steps = [int(line.removeprefix("step ")) for line in news.splitlines() if line.startswith("step ")]
        for step in steps:
            if step < known.least:
                raise Wrong(f"{known.name} had done {known.least} steps, and now does step {step} again")
            known.least = step

    # -- the end -----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """All is healed; every workload goes on, ends well, and leaves nothing."""
        world = self._world
        world.heal()
        self._look()
        for known in list(self._known.values()):
            if not self._goes_on(known):
                self._known.pop(known.name, None)
                continue
            client = world.agents[known.agent].client
            client.stop(known.name, grace_s=30)
            view = client.workload(known.name)
            self._read(known)
            if view.exit_status != 0 or "exact steps=" not in known.read:
                raise Wrong(f"{known.name} ended with status {view.exit_status}: {known.read[-500:]}")
            del self._known[known.name]
        for agent in world.agents:
            for view in agent.client.workloads():
                with contextlib.suppress(NotFound):
                    agent.client.stop(view.name, remove=True)
        self._remove_snapshots()
        for agent in world.agents:
            for tier in agent.client.verify():
                if tier.problems:
                    raise Wrong(f"verify at the end: {tier.problems}")
        for agent in world.agents:
            self._collect(agent)
        if left := remains.alive(world, self._before):
            raise Wrong("left behind: " + "; ".join(left))
        for agent in world.agents:
            agent.end()
        if left := remains.ended(world, self._before):
            raise Wrong("left behind after the agents' end: " + "; ".join(left))

    def _collect(self, agent: AgentProcess) -> None:
        """What an agent held of a bucket that failed it is let go of in the background."""
        deadline = time.monotonic() + HANG_S
        while True:
            try:
                agent.client.collect()
            except Busy as e:
                if time.monotonic() > deadline:
                    raise Wrong(f"garbage can't be collected: {e}") from e
                time.sleep(_LOOK_S)
            else:
                return

    def _goes_on(self, known: Known) -> bool:
        """Whether it does; what may have ended need not."""
        deadline = time.monotonic() + HANG_S
        while True:
            try:
                self._world.agents[known.agent].client.resume(known.name, timeout_s=10)
                break
            except (NotFound, WorkloadLost) as e:
                if known.may_end:
                    self._say(f"  {known.name} is gone, {known.may_end}: {e}")
                    return False
                raise Wrong(f"{known.name} can't be brought back: {e}") from e
            except KybernateError as e:
                if e.code in NEVER or time.monotonic() > deadline:
                    raise Wrong(f"{known.name} can't be resumed: {e.code}: {e}") from e
                if "claimed by" in e.message:
                    known.agent = 1 - known.agent
            time.sleep(_LOOK_S)
        self._look()
        if known.name not in self._known:
            return False
        wanted = known.least + 3
        while known.least < wanted:
            if time.monotonic() > deadline:
                view = self._view(self._world.agents[known.agent], known.name)
                raise Wrong(f"{known.name} doesn't go on from step {known.least}: {view}")
            time.sleep(_LOOK_S)
            self._look()
            if known.name not in self._known:
                return False
            with contextlib.suppress(KybernateError):  # others may have taken its room
                self._world.agents[known.agent].client.resume(known.name, timeout_s=10)
        return True

    def _remove_snapshots(self) -> None:
        """Images, and what a reboot let forget; everything else the agents delete by themselves."""
        deadline = time.monotonic() + HANG_S
        while True:
            left = [view for agent in self._world.agents for view in agent.client.snapshots().snapshots]
            if not left:
                return
            for agent in self._world.agents:
                for view in agent.client.snapshots().snapshots:
                    if view.kind == "image" or self._rebooted:
                        with contextlib.suppress(NotFound):
                            agent.client.remove_snapshot(view.name)
            if time.monotonic() > deadline:
                raise Wrong(f"snapshots are left: {[(view.name, view.tiers) for view in left]}")
            time.sleep(_LOOK_S)


@contextlib.contextmanager
def _client(agent: AgentProcess) -> Iterator[Client]:
    """A connection of the thread's own."""
    with Client(agent.state.socket) as client:
        yield client
