"""Finds the CRIU to use and its version; runs nothing but `criu --version`.

Looked for, best first: $KYBERNATE_CRIU (taken or refused, never passed over), the one an installed bundle carries,
the working tree's `.criu`, then the PATH. The first of version 4.2 or newer wins: 3.17 fails on recent
kernels, and 4.1 can't dump a TCP socket on Linux 6.16 and newer.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import kybernate
from kybernate.model.errors import Unsupported

MINIMUM = (4, 2)
VARIABLE = "KYBERNATE_CRIU"
HOW_TO_GET = (
    "in a working tree run `make setup`, a bundle carries one; or install CRIU 4.2 and name it in $KYBERNATE_CRIU"
)

_VERSION = re.compile(r"^Version: (\d+(?:\.\d+)*)", re.MULTILINE)
_TIMEOUT_S = 10.0
"""`criu --version` takes milliseconds; only a broken file system makes it wait."""


@dataclass(frozen=True, slots=True)
class Criu:
    """A CRIU that runs here."""

    path: Path
    version: tuple[int, ...]

    @property
    def version_text(self) -> str:
        return ".".join(str(part) for part in self.version)


def find_criu(environment: Mapping[str, str] = os.environ) -> Criu:
    """The CRIU to use.

    Raises:
        Unsupported: none of version 4.2 or newer; the message names what was found instead.
    """
    rejected = []
    for path in candidates(environment):
        version = version_of(path)
        if version is not None and version >= MINIMUM:
            return Criu(path, version)
        rejected.append(f"{path} {'does not run' if version is None else 'is ' + '.'.join(map(str, version))}")
    found = ", ".join(rejected) or "none found"
    raise Unsupported(f"no CRIU of version {'.'.join(map(str, MINIMUM))} or newer: {found}", hint=HOW_TO_GET)


def candidates(environment: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """Files that may be CRIU, best first; only those that exist, but for the one the environment names."""
    if named := environment.get(VARIABLE):
        yield Path(named)
        return
    beside = (
        Path(sys.prefix) / "share" / "kybernate" / "criu" / "bin" / "criu",
        Path(kybernate.__file__).resolve().parent.parent.parent / ".criu" / "bin" / "criu",
    )
    yield from (path for path in beside if path.is_file())
    # /usr/sbin is missing from many users' PATH, and CRIU lies there.
    search = os.pathsep.join((environment.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"))
    if on_path := shutil.which("criu", path=search):
        yield Path(on_path)


def version_of(path: Path) -> tuple[int, ...] | None:
    """What `criu --version` says; None if it does not run or says nothing of the kind."""
    try:
        answer = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(answer.stdout)
    return tuple(int(part) for part in match[1].split(".")) if match else None
