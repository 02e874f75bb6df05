"""How serving's parts are put together, in the order in which they need each other; parts.py calls `wire_serving`.

First leases and what is known of workloads, then the gate that switching asks (serving_base.py), then who decides
(controller.py) and who is started.
"""

from __future__ import annotations

from pathlib import Path

from kybernate.agent.serving.activator import Activator
from kybernate.agent.serving.adoption import Adoption
from kybernate.agent.serving.collect_state import NodeStateCollector
from kybernate.agent.serving.controller import Controller
from kybernate.agent.serving.ledger_watch import LedgerWatch
from kybernate.agent.serving.planner import Planner
from kybernate.agent.serving.policy_start import PolicyStart
from kybernate.agent.serving.prefetching import Prefetching
from kybernate.agent.serving.processes import Processes
from kybernate.agent.serving.refusals import Refusals
from kybernate.agent.serving.reload import Applying, Reload
from kybernate.agent.serving.removal import ModelLeases, Removal
from kybernate.agent.serving.serving import Serving, ServingLife
from kybernate.agent.serving.serving_orders import ServingOrders
from kybernate.agent.serving.views import ServedViews, ServingViews
from kybernate.agent.serving.worker_events import WorkerEvents
from kybernate.agent.wiring.controller import wire_controller
from kybernate.agent.wiring.serving_base import AgentParts, Early, GateParts, Rooms, ServingBase, wire_base, wire_gate
from kybernate.settings import AgentSettings


def wire_serving(
    parts: AgentParts, early: Early, rooms: Rooms, *, began_with: AgentSettings, file: Path | None
) -> Serving:
    """
    Args:
        began_with: what the file says of the agent itself, without the command line.
        file: what `reload` reads.
    """
    base = wire_base(parts, early.current, rooms.vram)
    gate = wire_gate(parts, base, rooms)
    prefetching = _prefetching(parts, base, rooms)
    collector = _collector(parts, base, rooms, prefetching)
    planner = Planner(configuration=base.current, collector=collector, leases=base.table, backoff=base.backoff)
    refusals = Refusals(leases=base.leases, board=base.board, backoff=base.backoff, outcomes=base.state.outcomes)
    controller = wire_controller(parts, base, gate, rooms, prefetching, collector, planner, refusals)
    policy_start = _policy_start(parts, base, early, planner, controller)
    processes = Processes(
        paths=base.paths, workers=base.workers, events=parts.events, tasks=parts.tasks, clock=parts.clock
    )
    models = ModelLeases(table=base.table, shares=base.shares, leases=base.leases, board=base.board)
    applying = _applying(base, models, prefetching, processes)
    removal = _removal(parts, base, rooms, models)
    activator = _activator(parts, base, gate, processes)
    return Serving(
        life=ServingLife(
            stats=base.stats,
            ledger_watch=(watch := _ledger_watch(parts, base, prefetching)),
            applying=applying,
            observations=base.observations,
            activator=activator,
            policy_start=policy_start,
            removal=None if file is None else removal,
            adoption=_adoption(parts, base, gate),
        ),
        on_changed=watch.on_changed,
        gate=gate.gate,
        before_stop=base.leases.close_before_stop,
        orders=ServingOrders(
            current=base.current,
            ledger=parts.ledger,
            starts=parts.starts,
            stop=rooms.stop,
            user_orders=base.user_orders,
            refusals=refusals,
        ),
        file=Reload(
            file=file,
            began_with=began_with,
            current=base.current,
            applying=applying,
            removal=removal,
            policy_start=policy_start,
            vram=base.vram,
            events=parts.events,
        ),
        views=_views(base, collector, planner, prefetching, activator),
        activator=activator,
    )


def _policy_start(
    parts: AgentParts, base: ServingBase, early: Early, planner: Planner, controller: Controller
) -> PolicyStart:
    return PolicyStart(
        current=base.current,
        planner=planner,
        controller=controller,
        leases=base.leases,
        victim_policy=early.victim_policy,
        tasks=parts.tasks,
    )


def _removal(parts: AgentParts, base: ServingBase, rooms: Rooms, models: ModelLeases) -> Removal:
    return Removal(
        ledger=parts.ledger,
        events=parts.events,
        tasks=parts.tasks,
        stop=rooms.stop,
        stats=base.stats,
        models=models,
    )


def _prefetching(parts: AgentParts, base: ServingBase, rooms: Rooms) -> Prefetching:
    return Prefetching(
        ledger=parts.ledger,
        events=parts.events,
        pool=rooms.pool,
        workloads=rooms.workloads,
        jobs=parts.jobs,
        tasks=parts.tasks,
        clock=parts.clock,
        wake=base.wake,
    )


def _collector(parts: AgentParts, base: ServingBase, rooms: Rooms, prefetching: Prefetching) -> NodeStateCollector:
    return NodeStateCollector(
        facts=base.facts,
        workloads=rooms.workloads,
        prefetching=prefetching,
        starts=parts.starts,
        backoff=base.backoff,
        stats=base.stats,
        vram=base.vram,
        auto_resume=parts.settings.arbiter.auto_resume,
    )


def _applying(base: ServingBase, models: ModelLeases, prefetching: Prefetching, processes: Processes) -> Applying:
    return Applying(
        current=base.current,
        models=models,
        stats=base.stats,
        prefetching=prefetching,
        user_orders=base.user_orders,
        vram=base.vram,
        processes=processes,
    )


def _adoption(parts: AgentParts, base: ServingBase, gate: GateParts) -> Adoption:
    return Adoption(
        current=base.current,
        leases=base.leases,
        table=base.table,
        readiness=gate.readiness,
        ready_watch=gate.ready_watch,
        tasks=parts.tasks,
    )


def _views(
    base: ServingBase, collector: NodeStateCollector, planner: Planner, prefetching: Prefetching, activator: Activator
) -> ServingViews:
    served = ServedViews(
        current=base.current,
        collector=collector,
        planner=planner,
        leases=base.table,
        backoff=base.backoff,
        usage=base.usage,
    )
    return ServingViews(
        current=base.current,
        collector=collector,
        planner=planner,
        served=served,
        usage=base.usage,
        prefetching=prefetching,
        activator=activator,
        vram=base.vram,
    )


def _activator(parts: AgentParts, base: ServingBase, gate: GateParts, processes: Processes) -> Activator:
    return Activator(
        paths=base.paths,
        current=base.current,
        workers=base.workers,
        events=WorkerEvents(
            board=base.board,
            leases=base.leases,
            loads=base.loads,
            shares=base.shares,
            readiness=gate.readiness,
            ready_watch=gate.ready_watch,
            clock=parts.clock,
            wake=base.wake,
        ),
        leases=base.leases,
        processes=processes,
    )


def _ledger_watch(parts: AgentParts, base: ServingBase, prefetching: Prefetching) -> LedgerWatch:
    return LedgerWatch(
        leases=base.leases,
        prefetching=prefetching,
        observations=base.observations,
        user_orders=base.user_orders,
        board=base.board,
        clock=parts.clock,
        wake=base.wake,
    )
