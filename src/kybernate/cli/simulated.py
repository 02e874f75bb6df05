"""The environment in which an agent finds the simulated driver. Pure but for the look where the library lies."""

from __future__ import annotations

from collections.abc import Mapping

from kybernate.model.errors import BadInput
from kybernate.model.native import simulated_driver
from kybernate.model.types import MIB

_LEAST = 64 * MIB


def simulated_environment(size_bytes: int, environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with the simulated driver in front; equal to it when that is so already.

    Raises:
        BadInput: too small to be of use.
        Unsupported: the library has not been built.
    """
    if size_bytes < _LEAST:
        raise BadInput(f"a simulated GPU of {size_bytes} bytes is too small", hint="give 64MiB or more")
    directory = str(simulated_driver().parent)
    path = [part for part in environment.get("LD_LIBRARY_PATH", "").split(":") if part and part != directory]
    wanted = dict(environment)
    wanted["LD_LIBRARY_PATH"] = ":".join([directory, *path])
    wanted["KYBERNATE_SIMULATED_GPU"] = str(size_bytes)
    return wanted
