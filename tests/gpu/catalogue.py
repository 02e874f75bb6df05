"""The programs of the compatibility table: what each is, how it is started, and what is expected of it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parent / "programs"
MIB = 1 << 20

PASSES, NATIVE, REFUSED = "passes", "slower because native", "refused"
"""The three columns. A fourth, `failed`, must not exist."""


@dataclass(frozen=True, slots=True)
class Program:
    """One row.

    `working_set` in bytes: what the program keeps in VRAM all the time. `expected`: the columns it may be in.
    """

    name: str
    what: str
    working_set: int
    expected: tuple[str, ...] = (PASSES,)
    source: str = ""
    """File in programs/; empty: `NAME.py` with `-` as `_`."""
    alone: bool = False
    """Takes so much of the GPU that nothing else may run beside it."""
    cycles_at_most: int | None = None
    pause_timeout_s: float = 30.0

    @property
    def path(self) -> Path:
        return PROGRAMS / (self.source or f"{self.name.replace('-', '_')}.py")


CATALOGUE: tuple[Program, ...] = (
    # The slow starters first, so that they don't come last.
    Program("torch-compile", "PyTorch, torch.compile with Triton", 512 * MIB),
    Program(
        "triton-asks-first", "Triton: CPU work, then a kernel whose launcher asks about its pointers first", 512 * MIB
    ),
    Program("torch-dataloader", "PyTorch, DataLoader with four worker processes", 512 * MIB),
    Program("tree-of-two", "a tree of two CUDA processes (PyTorch)", 1024 * MIB),
    Program("torch-malloc-async", "PyTorch, cudaMallocAsync backend", 512 * MIB, (PASSES, NATIVE)),
    Program("jax-async", "JAX, cuda_async allocator", 512 * MIB, (PASSES, NATIVE)),
    Program("torch-default", "PyTorch, default allocator", 1024 * MIB),
    Program("torch-expandable", "PyTorch, expandable_segments", 1024 * MIB),
    Program("torch-graphs", "PyTorch, CUDA graphs being replayed", 512 * MIB),
    Program("torch-streams", "PyTorch, four threads with two streams each", 1024 * MIB),
    Program("torch-pinned", "PyTorch, pinned memory and copies in flight", 512 * MIB),
    Program("jax-default", "JAX, default pool (a tenth of the GPU)", 1024 * MIB),
    Program("jax-scan", "JAX, lax.scan with copies to the host between", 512 * MIB),
    Program("cupy-pool", "CuPy, memory pool", 1024 * MIB),
    Program("numba-kernels", "numba.cuda", 512 * MIB),
    Program("pointer-questions", "every question about memory, from threads with CPU work", 24 * MIB),
    Program("plain", "C++ with the static CUDA runtime", 1024 * MIB, source="plain.cu"),
    Program("managed", "managed memory", 512 * MIB, (REFUSED,), source="managed.cu"),
    Program(
        "capture", "a stream capture that stays open", 512 * MIB, (REFUSED,), source="capture.cu", pause_timeout_s=2.0
    ),
    Program("endless", "a kernel that does not end", 512 * MIB, (REFUSED,), source="endless.cu", pause_timeout_s=2.0),
    Program("ipc", "legacy CUDA IPC between two processes", 512 * MIB, (REFUSED,), source="ipc.cu"),
    Program("jax-whole-gpu", "JAX as it comes: three quarters of the GPU", 1024 * MIB, alone=True, cycles_at_most=10),
)


SIMULATED = frozenset({"pointer-questions"})
"""Those that run on the simulated driver, too."""


class NotBuilt(RuntimeError):
    """A program can't be started on this machine."""


def command(program: Program, *, python: str, build: Path) -> list[str]:
    """Command line of a program; CUDA C++ is compiled into `build` first.

    Raises:
        NotBuilt: there is no nvcc, or it fails.
    """
    if program.path.suffix == ".py":
        return [python, str(program.path)]
    return [str(compiled(program.path, build))]


def compiled(source: Path, build: Path) -> Path:
    """The binary of a CUDA C++ program, made with the static runtime. Raises NotBuilt."""
    target = build / source.stem
    if target.exists():
        return target
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        raise NotBuilt("no nvcc on this machine")
    temporary = build / f"{source.stem}.{os.getpid()}"
    done = subprocess.run(
        [nvcc, "-cudart", "static", f"-arch={_architecture()}", "-O2", "-o", str(temporary), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NotBuilt(f"nvcc fails on {source.name}: {done.stderr.strip()[-300:]}")
    temporary.replace(target)
    return target


def _architecture() -> str:
    said = subprocess.run(
        ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "--id=0"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return f"sm_{said.replace('.', '')}" if said.replace(".", "").isdigit() else "sm_90"


def python_with(modules: Sequence[str] = ("torch",)) -> str:
    """An interpreter that has the frameworks: $KYBERNATE_PROGRAM_PYTHON, our own, or the PATH's."""
    if named := os.environ.get("KYBERNATE_PROGRAM_PYTHON"):
        return named
    if all(importlib.util.find_spec(module) for module in modules):
        return sys.executable
    question = f"import importlib.util as u, sys; sys.exit(not all(u.find_spec(m) for m in {list(modules)!r}))"
    candidates = [str(Path(part) / "python3") for part in os.environ.get("PATH", "").split(":") if part]
    for candidate in [*candidates, "/opt/torch/.venv/bin/python3"]:
        if Path(candidate).exists() and subprocess.run([candidate, "-c", question], check=False).returncode == 0:
            return candidate
    return sys.executable
