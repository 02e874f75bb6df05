"""Writes the record of a dump that was just made: whose it is, what it needs, and on what machine."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kybernate.process import criu_images, images
from kybernate.process.bulk import Taken, Zeros
from kybernate.process.criu import Criu
from kybernate.process.images import Launched, NeededFile, TreeRecord
from kybernate.process.records import SupervisorRecord
from kybernate.process.tree import OUTPUT, Tree


def write_record(
    tree: Tree,
    record: SupervisorRecord,
    launched: Launched,
    partial: Path,
    *,
    criu: Criu,
    report: dict[str, Any],
    taken: Mapping[str, Taken],
    zeros: Mapping[str, Zeros],
) -> TreeRecord:
    """Write tree.json of a dump that has all its other files.

    Args:
        report: of the program that dumped (dumper.py).
        taken, zeros: its bulk, and what was left out of it that has to be put in again.
    """
    inside = record.run_directory_inside or tree.run_directory.resolve()
    output = tree.run_directory / OUTPUT
    written = TreeRecord(
        name=tree.name,
        main_inside=record.main_inside,
        last_inside=max(criu_images.processes(partial)),
        run_directory=str(inside),
        state_directory=str(inside.parents[1]),
        launched=launched,
        processes=tuple(report["processes"]),
        needs=tuple(NeededFile(**file) for file in report["needs"]),
        shared=tuple(images.parse_shared(each) for each in report["shared"]),
        output_bytes=output.stat().st_size if output.exists() else 0,
        taken=time.time(),
        criu=criu.version_text,
        kernel=platform.release(),
        machine=platform.machine(),
        cpu_flags=_cpu_flags(),
        files=images.sizes(partial) | {name: found.size for name, found in taken.items()},
        zeros=zeros,
    )
    written.write(partial)
    return written


def _cpu_flags() -> tuple[str, ...]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return tuple(sorted(line.partition(":")[2].split()))
    return ()
