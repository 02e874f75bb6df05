"""A plugin of coverage.py (`make coverage`): it counts supervisors and dumpers, too.

They run with `-I -S` and an environment of their own, so coverage.py's own way into started processes (a .pth file and a
variable) does not reach them. Here their command line begins with what that file would do. Outside of `make coverage`
nothing of this is loaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import coverage

_START = [sys.executable, "-I", "-S", "-c"]
_VARIABLE = "COVERAGE_PROCESS_CONFIG"
_PATHS = [str(Path(coverage.__file__).parents[1]), str(Path(__file__).parents[1])]


def coverage_init(registry: object, options: object) -> None:
    """Called by coverage.py once in each process that it measures."""
    plain = subprocess.Popen.__init__

    def measured(self: subprocess.Popen[Any], args: Any, *others: Any, **named: Any) -> None:
        config = os.environ.get(_VARIABLE)
        if config and isinstance(args, list) and args[:4] == _START and "kybernate.process." in args[4]:
            args = [*_START, _first(config) + args[4], *args[5:]]
        plain(self, args, *others, **named)

    subprocess.Popen.__init__ = measured  # type: ignore[method-assign]


def _first(config: str) -> str:
    """Not in the environment that it is started with: a workload may look at that."""
    return (
        f"import os, sys; sys.path += {_PATHS!r}; os.environ[{_VARIABLE!r}] = {config!r}; "
        f"import coverage; coverage.process_startup(); del os.environ[{_VARIABLE!r}]; "
    )
