"""When who was asked for, and how long it worked on that: a line a request, for `kybernate simulate --trace`. Nothing of what was
said.

Lines are gathered and appended once a second, with one write, so that the workers of one port can share a file, and whoever
moves it away finds a new one there. A file that can't be written costs lines, never a request; that is said once.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Final

import structlog

_LINES_MAX: Final = 100_000
"""Kept in memory at most, should the disk not answer for long."""

log = structlog.get_logger()


class Recorder:
    """Use it in the loop's thread; `flush` blocks for as long as a small write to a local file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []
        self._failed = False

    def answered(self, model: str, *, arrived: float, forwarded: float, now: float) -> None:
        """Times by the monotonic clock."""
        if len(self._lines) < _LINES_MAX:
            at = time.time() - (now - arrived)
            line = {"at_s": round(at, 3), "model": model, "seconds": round(now - forwarded, 3)}
            self._lines.append(json.dumps(line) + "\n")

    def flush(self) -> None:
        if not self._lines:
            return
        content, self._lines = "".join(self._lines).encode(), []
        try:
            descriptor = os.open(
                self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode=0o600
            )
            try:
                os.write(descriptor, content)
            finally:
                os.close(descriptor)
        except OSError as e:
            if not self._failed:
                log.warning("requests can't be recorded", file=str(self.path), error=e.strerror)
            self._failed = True
        else:
            self._failed = False
