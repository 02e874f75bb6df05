"""Stations of CRIU's run at which it waits for us: its action script, and two pipes.

The script is a memfd without a path of its own, since no directory is sure to be seen inside a workload. Imported by the
supervisor: so nothing but the built-ins.
"""

from __future__ import annotations

import contextlib
import os
import select

_TEXT = """#!/bin/sh
case "$CRTOOLS_SCRIPT_ACTION" in {actions}) ;; *) exit 0 ;; esac
echo "$CRTOOLS_SCRIPT_ACTION" >/proc/{holder}/fd/{ready} || exit 1
read -r answer </proc/{holder}/fd/{go}
[ "$answer" = g ]
"""


class Stations:
    """Made before the fork of what becomes CRIU."""

    def __init__(self, *actions: str, holder: str) -> None:
        """
        Args:
            actions: CRIU's names of the stations ($CRTOOLS_SCRIPT_ACTION).
            holder: the process, as seen by the script, that has the descriptors `inside`: CRIU closes the script's own.
        """
        self._ready, ready = os.pipe()
        go, self._go = os.pipe()
        self.script = os.memfd_create("kybernate-stations", os.MFD_CLOEXEC)
        os.write(self.script, _TEXT.format(actions="|".join(actions), holder=holder, ready=ready, go=go).encode())
        self.inside: tuple[int, ...] = (self.script, ready, go)

    def become_inside(self) -> None:
        """In a forked child that keeps CRIU's end alone: else CRIU would wait for ever where this process was killed."""
        os.close(self._ready)
        os.close(self._go)

    def become_outside(self) -> None:
        """Leave CRIU's end to a child."""
        for descriptor in self.inside:
            os.close(descriptor)
        self.inside = ()

    def reached(self, process: int) -> str | None:
        """Wait until CRIU is at one of them, and say which. None: that child has ended first. (End of file wouldn't tell: a
        helper of CRIU's may have it.)"""
        pidfd = os.pidfd_open(process)
        try:
            poller = select.poll()
            poller.register(self._ready, select.POLLIN)
            poller.register(pidfd, select.POLLIN)
            found = dict(poller.poll())
        finally:
            os.close(pidfd)
        if not found.get(self._ready, 0) & select.POLLIN:
            return None
        return os.read(self._ready, 100).decode().strip()  # one at a time: it waits there

    def go_on(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # CRIU was killed; its status says so
            os.write(self._go, b"g\n")

    def close(self) -> None:
        """Our end, and CRIU's where it is still here. Who waits for `go_on` is told no."""
        os.close(self._ready)
        os.close(self._go)
        self.become_outside()
