"""What a snapshot needs of the host it is restored on, and in which words a host is told that it won't do.

The engine fills `Needs` when it takes a snapshot and `Host` before it restores one. A field that is None or empty says
nothing and is never a reason to refuse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from kybernate.model.quantities import format_size


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class GpuNeed(_Part):
    """A GPU as the workload saw it."""

    name: str = Field(max_length=200)
    """As nvidia-smi prints it, such as `NVIDIA H200`."""
    memory_bytes: int = Field(default=0, ge=0, le=1 << 50)
    """Of the whole GPU; 0: unknown."""


class FileNeed(_Part):
    """A file outside of the snapshot that the workload has open or mapped."""

    path: str = Field(max_length=4096)
    size_bytes: int = Field(ge=0, le=1 << 60)
    digest: str | None = Field(default=None, max_length=128)
    """BLAKE3 of the content in hexadecimal digits; None where only the size is compared."""


class Needs(_Part):
    """What must be the same, or there, on the host of the restore."""

    gpus: tuple[GpuNeed, ...] = ()
    driver: str | None = Field(default=None, max_length=100)
    """The very same version: its library is mapped in the process."""
    cpu_features: tuple[str, ...] = ()
    """Flags of /proc/cpuinfo that the process may have chosen its code by."""
    kernel: str | None = Field(default=None, max_length=200)
    """At least this release; CRIU's images may use what older kernels can't restore."""
    criu: str | None = Field(default=None, max_length=100)
    """At least this version."""
    files: tuple[FileNeed, ...] = ()
    more: dict[str, JsonValue] = Field(default_factory=dict)
    """Whatever else the engine wants to compare itself."""


class Host(_Part):
    """The same of a host, as found there."""

    gpus: tuple[GpuNeed, ...] = ()
    driver: str | None = None
    cpu_features: tuple[str, ...] = ()
    kernel: str | None = None
    criu: str | None = None


def differences(needs: Needs, host: Host, *, digest_of: Callable[[Path], str] | None = None) -> list[str]:
    """Why the snapshot can't run on this host, a sentence each; empty when it can.

    Args:
        digest_of: BLAKE3 of a file in hexadecimal digits; None compares sizes only. May raise OSError.
    """
    return [
        *_gpus(needs, host),
        *_driver(needs, host),
        *_processor(needs, host),
        *_at_least("kernel", "Linux", needs.kernel, host.kernel),
        *_at_least("CRIU", "CRIU", needs.criu, host.criu),
        *(line for file in needs.files for line in _file(file, digest_of)),
    ]


def _gpus(needs: Needs, host: Host) -> list[str]:
    wanted, there = (_counted(gpus) for gpus in (needs.gpus, host.gpus))
    found = ", ".join(f"{count} x {name}" for name, count in sorted(there.items())) or "none"
    lines = [
        f"it needs {count} x {name}; this host has {found}"
        for name, count in sorted(wanted.items())
        if there.get(name, 0) < count
    ]
    if lines:
        return lines
    for gpu in needs.gpus:
        same = [other.memory_bytes for other in host.gpus if other.name == gpu.name]
        if gpu.memory_bytes and any(same) and max(same) < gpu.memory_bytes:
            lines.append(
                f"it needs a {gpu.name} with {format_size(gpu.memory_bytes)}; this host's have {format_size(max(same))}"
            )
    return lines


def _counted(gpus: tuple[GpuNeed, ...]) -> Mapping[str, int]:
    names = [gpu.name for gpu in gpus]
    return {name: names.count(name) for name in set(names)}


def _driver(needs: Needs, host: Host) -> list[str]:
    if needs.driver is None or needs.driver == host.driver:
        return []
    return [f"it was taken under driver {needs.driver}; this host has {host.driver or 'no driver'}"]


def _processor(needs: Needs, host: Host) -> list[str]:
    missing = sorted(set(needs.cpu_features) - set(host.cpu_features))
    if not missing:
        return []
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    return [f"this host's processor lacks {', '.join(missing[:8])}{more}"]


def _at_least(what: str, title: str, needed: str | None, there: str | None) -> list[str]:
    if needed is None or (there is not None and _numbers(there) >= _numbers(needed)):
        return []
    return [f"it needs {title} {needed} or newer; this host has {there or f'no {what}'}"]


def _numbers(version: str) -> tuple[int, ...]:
    """The first three numbers; what a distribution adds says nothing of abilities."""
    return tuple(int(number) for number in re.findall(r"\d{1,9}", version)[:3])


def _file(file: FileNeed, digest_of: Callable[[Path], str] | None) -> list[str]:
    path = Path(file.path)
    try:
        size = path.stat().st_size
        if size != file.size_bytes:
            return [f"{file.path} has {size} bytes here, and had {file.size_bytes}"]
        if digest_of is not None and file.digest is not None and digest_of(path) != file.digest:
            return [f"{file.path} has another content here"]
    except OSError as e:
        return [f"{file.path} can't be read here: {e.strerror}"]
    return []
