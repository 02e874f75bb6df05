"""What is no error in a kybernate.yaml, and yet most likely not what was meant: on this machine, or at all. Looks at files.

Limits: `check` may run on another machine than the agent, so what is missing here is said and not refused.
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from kybernate.doctor.command_lint import of_command
from kybernate.model.addresses import on_loopback
from kybernate.model.quantities import format_size
from kybernate.model.types import GpuUuid
from kybernate.settings import JobSettings, ModelSettings, Settings
from kybernate.settings.specs import Kind, Served
from kybernate.settings.vram_hints import hinted


def advice(settings: Settings) -> list[str]:
    """A line each, with the setting's name first."""
    return [*settings.warnings, *(f"{place}: {text}" for place, text in _advice(settings))]


def too_large(served: Iterable[Served], capacity: Mapping[GpuUuid, int], visible: str | None) -> list[str]:
    """Models and jobs that never fit, by their `vram`; a line each. Pure.

    Args:
        capacity: bytes that each GPU hands out, in the agent's order. Empty: nobody knows.
        visible: the agent's own CUDA_VISIBLE_DEVICES.
    """
    found = []
    for each in served:
        place = f"{'models' if each.kind is Kind.MODEL else 'jobs'}.{each.name}.vram"
        for uuid, size in hinted(each, list(capacity), visible).items():
            if uuid not in capacity:
                found.append(f"{place}: it has a size for more GPUs than it sees ({len(capacity)} here)")
                break
            if size > capacity[uuid]:
                had = format_size(capacity[uuid])
                found.append(f"{place}: {format_size(size)} will never fit: the GPU here hands out {had}")
                break
    return found


def _advice(settings: Settings) -> Iterator[tuple[str, str]]:
    for name, model in settings.models.items():
        yield from _program(f"models.{name}", model)
        if model.health is not None and not model.hosts and not model.paths:
            yield f"models.{name}.health", "nobody can ask there: only `hosts` or `paths` lead a probe to a model"
    for name, job in settings.jobs.items():
        yield from _program(f"jobs.{name}", job)
    yield from _pool(settings)
    store = settings.agent.store
    if store.directory is not None and not store.directory.parent.is_dir():
        yield "agent.store.directory", f"there is no directory {store.directory.parent} here in which to make it"
    if (bucket := store.object.url or "").startswith("file://") and not Path(bucket.removeprefix("file://")).is_dir():
        yield "agent.store.object.url", f"there is no directory {bucket.removeprefix('file://')} here"
    activator = settings.activator
    files = [("keys_file", activator.keys_file)]
    files += [("tls.certificate", activator.tls.certificate), ("tls.key", activator.tls.key)]
    for setting, path in files:
        if path is not None and not path.exists():
            yield f"activator.{setting}", f"there is no {path} here"
    if settings.models and activator.keys_file is None and not on_loopback(activator.listen):
        unnamed = activator.hosts is None and activator.tls.certificate is None
        pages = ", and so may any page in a browser that gets there (`activator.hosts`)" if unnamed else ""
        yield "activator.keys_file", f"without it whoever reaches {activator.listen} may ask the models{pages}"


def _pool(settings: Settings) -> Iterator[tuple[str, str]]:
    """Host memory for all that may be paused: whoever is switched to leaves it only once it has come."""
    size = settings.agent.pool.size
    programs = (*settings.models.values(), *settings.jobs.values())
    wanted = sum(sum(program.vram or ()) for program in programs)
    if size is not None and len(programs) > 1 and wanted > size:
        yield (
            "agent.pool.size",
            f"models and jobs take {format_size(wanted)}, the pool has {format_size(size)}: some go to the disk and back, slowly",
        )


def _program(place: str, program: ModelSettings | JobSettings) -> Iterator[tuple[str, str]]:
    first = program.command[0]
    for text in of_command(program.command, port=program.port if isinstance(program, ModelSettings) else None):
        yield f"{place}.command", text
    if not _found(first, program):
        yield f"{place}.command", f"there is no program {first} here"
    if not program.directory.is_dir():
        yield f"{place}.directory", f"there is no directory {program.directory} here"
    if program.user is not None:
        try:
            pwd.getpwnam(program.user)
        except KeyError:
            if not program.user.isdigit():
                yield f"{place}.user", f"there is no user {program.user} here"


def _found(program: str, settings: ModelSettings | JobSettings) -> bool:
    if "/" in program:
        return os.access(Path(settings.directory) / program, os.X_OK)
    return shutil.which(program, path=settings.environment.get("PATH")) is not None
