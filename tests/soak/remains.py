"""What must not be left: when every workload has been removed while the agents still run, and when these have ended."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.agent.conftest import AgentProcess

from kybernate.model.types import workload_name
from kybernate.process.cgroups import WorkloadCgroup

_MORE_DESCRIPTORS = 24
"""Threads and connections that come to stay once an agent has worked."""


class World(Protocol):
    """What is looked at."""

    root: Path
    disks: list[Path]
    bucket: Path

    @property
    def agents(self) -> Sequence[AgentProcess]: ...


@dataclass(frozen=True, slots=True)
class Before:
    """How it was when nothing had been done yet."""

    mounts: frozenset[str]
    descriptors: tuple[int, ...]

    @classmethod
    def of(cls, world: World) -> Before:
        return cls(frozenset(_mounts(world)), tuple(_descriptors(agent.pid) for agent in world.agents))


def alive(world: World, before: Before, *, own: Collection[int] = ()) -> list[str]:
    """In a line each. `own`: processes besides the agents that may live on."""
    left: list[str] = []
    own = {os.getpid(), *(agent.pid for agent in world.agents), *own}
    for number, agent in enumerate(world.agents):
        who = "ab"[number]
        node = agent.client.node()
        left += [f"{who}: {gpu.resident_bytes} B in VRAM" for gpu in node.gpus if gpu.resident_bytes]
        if node.pool is not None and node.pool.free_bytes != node.pool.size_bytes:
            left.append(f"{who}: {node.pool.size_bytes - node.pool.free_bytes} B in the pool")
        left += [f"{who}: {tier.used_bytes} B in {tier.tier}" for tier in node.tiers if tier.used_bytes]
        left += [f"{who}: {path}" for path in _files(agent.state.workloads)]
        left += [f"{who}: {job}" for job in agent.client.jobs()]
        left += [
            f"{who}: cgroup {group.path.parent}: {[path.name for path in group.path.parent.iterdir()]}"
            for group in _groups(agent.state.root)
        ]
        if (now := _descriptors(agent.pid)) > before.descriptors[number] + _MORE_DESCRIPTORS:
            left.append(f"{who}: {now} descriptors, {before.descriptors[number]} at its start")
    for disk in world.disks:
        left += [str(path) for path in _files(disk) if "scratch" in str(path) and path.is_file()]
        left += [str(path) for path in _files(disk) if path.parent.name in ("packs", "manifests")]
    left += [str(path) for path in _files(world.bucket) if path.parent.name in ("packs", "manifests", "claims")]
    left += [f"mount {point}" for point in _mounts(world) if point not in before.mounts]
    return left + [f"process {pid} {words}" for pid, words in _processes(world.root) if pid not in own]


def ended(world: World, before: Before) -> list[str]:
    """The same once no agent runs."""
    left = [f"process {pid} {words}" for pid, words in _processes(world.root) if pid != os.getpid()]
    left += [f"mount {point}" for point in _mounts(world) if point not in before.mounts]
    return left + [f"socket {path}" for path in _files(world.root) if path.is_socket() and "-gpu" not in str(path)]


def _files(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*")) if directory.is_dir() else []


def _groups(state: Path) -> list[WorkloadCgroup]:
    return WorkloadCgroup.existing(state_directory=state, name=workload_name("probe"))


def _mounts(world: World) -> list[str]:
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [point for point in points if point.startswith(f"{world.root}/")]


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _processes(root: Path) -> Iterator[tuple[int, str]]:
    """Those that name the directory, or stand in it."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (path / "environ").read_bytes().decode(errors="replace")
            if "tests.guardian" in words or "versitygw" in words:
                continue
            if str(root) in words or str(root) in environment:
                yield int(path.name), words
