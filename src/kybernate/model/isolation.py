"""Starting Python programs of ours so that no file of the directory somebody happens to stand in is imported.

`python -m` puts that directory first in the search path, and an empty or relative entry of $PYTHONPATH means it, too: a file there
that is called like a library's module would be run as root. `-I` would say no to all of $PYTHONPATH and to the user's own
packages, by which an installation may be found; hence `-P`, and the entries made absolute.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_VARIABLE = "PYTHONPATH"


def python(module: str) -> list[str]:
    """The command that runs a module of ours. To be started with `environment`."""
    return [sys.executable, "-P", "-m", module]


def environment(own: Mapping[str, str], *, directory: Path | None = None) -> dict[str, str]:
    """The same environment with a search path that doesn't mean `directory` (the current one) just since it is that.

    An entry that leads below it, or names it in full, was meant and stays.
    """
    base = Path.cwd() if directory is None else directory
    entries = [entry for entry in own.get(_VARIABLE, "").split(os.pathsep) if entry not in ("", ".", "./")]
    rest = {name: value for name, value in own.items() if name != _VARIABLE}
    return rest | ({_VARIABLE: os.pathsep.join(str(base / entry) for entry in entries)} if entries else {})
