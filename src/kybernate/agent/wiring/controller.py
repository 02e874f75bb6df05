"""Who decides in serving, and what carries its decisions out."""

from __future__ import annotations

from kybernate.agent.serving.action_runner import ActionRunner
from kybernate.agent.serving.bringup import Bringup
from kybernate.agent.serving.collect_state import NodeStateCollector
from kybernate.agent.serving.controller import Controller
from kybernate.agent.serving.demotions import Demotions
from kybernate.agent.serving.effects import BringEffect, Effects
from kybernate.agent.serving.failures import ActionFailures
from kybernate.agent.serving.gold_images import GoldImages
from kybernate.agent.serving.periodic import Periodic
from kybernate.agent.serving.planner import Planner
from kybernate.agent.serving.prefetching import Prefetching
from kybernate.agent.serving.refusals import Refusals
from kybernate.agent.serving.restarts import Restarts
from kybernate.agent.serving.victims import Victims
from kybernate.agent.wiring.serving_base import AgentParts, GateParts, Rooms, ServingBase


def wire_controller(
    parts: AgentParts,
    base: ServingBase,
    gate: GateParts,
    rooms: Rooms,
    prefetching: Prefetching,
    collector: NodeStateCollector,
    planner: Planner,
    refusals: Refusals,
) -> Controller:
    actions = base.state.actions
    runner = ActionRunner(actions=actions, tasks=parts.tasks, clock=parts.clock, wake=base.wake)
    victims = Victims(
        configuration=base.current,
        leases=base.leases,
        readiness=gate.readiness,
        backoff=base.backoff,
        vram=base.vram,
    )
    failures = ActionFailures(
        ledger=parts.ledger,
        events=parts.events,
        starts=parts.starts,
        backoff=base.backoff,
        leases=base.leases,
        outcomes=base.state.outcomes,
        vram=base.vram,
    )
    bring = BringEffect(
        facts=base.facts,
        actions=actions,
        runner=runner,
        victims=victims,
        bringup=_bringup(parts, base, gate, rooms),
        prefetching=prefetching,
        ready_watch=gate.ready_watch,
        failures=failures,
    )
    periodic = _periodic(parts, base, rooms, collector, refusals, runner, victims, failures)
    return Controller(
        planner=planner,
        effects=Effects(
            runner=runner,
            bring=bring,
            victims=victims,
            switches=rooms.switches,
            prefetching=prefetching,
            failures=failures,
        ),
        refusals=refusals,
        polled=(base.observations, prefetching, periodic),
        starts=parts.starts,
        tasks=parts.tasks,
        clock=parts.clock,
        wake=base.wake,
    )


def _periodic(
    parts: AgentParts,
    base: ServingBase,
    rooms: Rooms,
    collector: NodeStateCollector,
    refusals: Refusals,
    runner: ActionRunner,
    victims: Victims,
    failures: ActionFailures,
) -> Periodic:
    return Periodic(
        configuration=base.current,
        collector=collector,
        starts=parts.starts,
        user_orders=base.user_orders,
        refusals=refusals,
        victims=victims,
        restarts=Restarts(
            runner=runner,
            actions=base.state.actions,
            victims=victims,
            stop=rooms.stop,
            starts=parts.starts,
            events=parts.events,
            observations=base.observations,
            failures=failures,
        ),
        demotions=Demotions(runner=runner, demoter=rooms.demoter, backoff=base.backoff),
    )


def _bringup(parts: AgentParts, base: ServingBase, gate: GateParts, rooms: Rooms) -> Bringup:
    gold_images = GoldImages(
        images=rooms.images,
        clones=rooms.clones,
        catalog=rooms.catalog,
        find=rooms.find_snapshot,
        stats=base.stats,
        events=parts.events,
        vram=base.vram,
    )
    return Bringup(
        ledger=parts.ledger,
        run=rooms.run,
        switches=rooms.switches,
        gold_images=gold_images,
        readiness=gate.readiness,
        stats=base.stats,
        clock=parts.clock,
    )
