"""The file of commands that a benchmark's workload reads: lines `ID VERB WORDS ...`, each answered `done ID VERB seconds=S`.

Programs under another interpreter import it, too, so it needs nothing but Python.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

POLL_S = 0.002


def obey(
    commands: Path, carry_out: Callable[[str, str, Sequence[str]], float | None], *, stopped: Callable[[], bool]
) -> int:
    """Do what whole lines of that file say, in their order, until `stopped`.

    Args:
        carry_out: gets a command's id, verb and further words; what it returns are its seconds, None: the time that it took.

    Returns:
        How many there were.
    """
    done = 0
    while not stopped():
        lines: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            text = commands.read_text()
            lines = text[: text.rfind("\n") + 1].splitlines()
        if len(lines) <= done:
            time.sleep(POLL_S)
            continue
        identity, verb, *words = lines[done].split()
        done += 1
        started = time.monotonic()
        seconds = carry_out(identity, verb, words)
        if seconds is None:
            seconds = time.monotonic() - started
        print(f"done {identity} {verb} seconds={seconds:.6f}", flush=True)
    return done
