"""Finds the native libraries: the preload library and the simulated driver.

They lie in the installed package's `native/` or, in a working tree, in `build/native/`; both have one layout.
The preload library's directory carries the version: an upgrade adds a file and never overwrites the one that
running workloads have mapped. `KYBERNATE_NATIVE_DIR` names another place (a sanitizer's build, a test).

Limits: looks for files only; whether they fit this machine is the doctor's question.
"""

from __future__ import annotations

import os
from pathlib import Path

import kybernate
from kybernate.model.errors import Unsupported

PRELOAD_NAME = "libkybernate-preload.so"
SIMULATED_NAME = "libcuda.so.1"

_PACKAGE = Path(kybernate.__file__).resolve().parent


def native_directories() -> tuple[Path, ...]:
    """Where the libraries may lie, best first."""
    if override := os.environ.get("KYBERNATE_NATIVE_DIR"):
        return (Path(override).resolve(),)
    return (_PACKAGE / "native", _PACKAGE.parent.parent / "build" / "native")


def preload_library() -> Path:
    """The library for a workload's LD_PRELOAD, of this very version.

    Raises:
        Unsupported: it isn't there; the message says how to get it.
    """
    return _find(Path(kybernate.__version__) / PRELOAD_NAME, what="preload library")


def simulated_driver() -> Path:
    """The simulated `libcuda.so.1`; its directory goes into LD_LIBRARY_PATH on a machine without a GPU.

    Raises:
        Unsupported: it isn't there; the message says how to get it.
    """
    return _find(Path("simulated") / SIMULATED_NAME, what="simulated driver")


def _find(relative: Path, *, what: str) -> Path:
    directories = native_directories()
    for directory in directories:
        if (path := directory / relative).is_file():
            return path
    places = " nor ".join(str(directory / relative) for directory in directories)
    raise Unsupported(
        f"the {what} is not at {places}",
        hint="in a working tree run `make native`; otherwise install Kybernate again",
    )
