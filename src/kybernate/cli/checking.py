"""`kybernate check FILE`: what a file that is right means, in a table, and what in it is most likely not meant so."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from kybernate.agent.serving.address import answered_hosts
from kybernate.cli.common import Common, table
from kybernate.cli.known import limits_here
from kybernate.doctor.config_lint import advice, too_large
from kybernate.model.quantities import format_size
from kybernate.model.types import GpuUuid
from kybernate.settings import ModelSettings, Settings
from kybernate.settings.specs import served_of
from kybernate.settings.vram_hints import VISIBLE

_COLUMNS = ("NAME", "KIND", "CLASS", "START", "VRAM", "ASKED FOR BY")


def tell(file: Path, settings: Settings, common: Common) -> None:
    """
    Args:
        common: of the agent that may answer here: it knows what the GPUs hand out.
    """
    print(f"{file}: ok")
    if settings.models:
        activator = settings.activator
        scheme = "http" if activator.tls.certificate is None else "https"
        keys = "no key is needed" if activator.keys_file is None else f"with a key of {activator.keys_file}"
        print(f"models on {scheme}://{activator.listen}, {keys}, policy {settings.serving.policy}")
        if (hosts := answered_hosts(settings)) is not None:
            print(f"asked as localhost, any IP address, {', '.join(hosts)}; 421 to requests for other hosts")
    if settings.models or settings.jobs:
        table(_COLUMNS, list(_rows(settings)), width=_width())
    limits = {GpuUuid(f"gpu {i}"): size for i, size in enumerate(limits_here(common))}
    for line in [*advice(settings), *too_large(served_of(settings).values(), limits, os.environ.get(VISIBLE))]:
        print(f"look at {line}")


def _rows(settings: Settings) -> Iterator[tuple[str, ...]]:
    for name, model in settings.models.items():
        yield name, "model", str(model.klass), str(model.start), _sizes(model.vram), ", ".join(_ways(name, model))
    for name, job in settings.jobs.items():
        yield name, "job", str(job.klass), "; ".join(job.schedule) or "in any gap", _sizes(job.vram), "-"


def _sizes(vram: tuple[int, ...] | None) -> str:
    """One for each GPU."""
    return "?" if vram is None else " + ".join(format_size(size) for size in vram)


def _ways(name: str, model: ModelSettings) -> Iterator[str]:
    yield name
    yield from model.names
    yield from (f"host {host}" for host in model.hosts)
    yield from (f"path {path}" for path in model.paths)


def _width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
