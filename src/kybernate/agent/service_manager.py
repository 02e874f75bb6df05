"""What the agent tells whoever started it as a service (systemd's sd_notify protocol): that it is ready, reads its file again or
ends, and a line on what it does. Nothing where nobody wants to hear it.

A datagram to the socket that $NOTIFY_SOCKET names, twenty lines: the bindings of libsystemd would need its headers to be built.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import MutableMapping

_VARIABLE = "NOTIFY_SOCKET"


class ServiceManager:
    """Never blocks and never fails: a manager that doesn't listen is its own affair."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Takes the variable out: children must not speak for the agent."""
        self._address = environment.pop(_VARIABLE, "")

    def status(self, line: str) -> None:
        """For people, shown by `systemctl status`."""
        self._tell(f"STATUS={' '.join(line.split())}")

    def ready(self) -> None:
        """Every address answers; also after a reload."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """The next `ready` ends it."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def _tell(self, *assignments: str) -> None:
        if not self._address.startswith(("/", "@")):
            return
        # A leading @ stands for a name that is in no directory.
        where = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out,
        ):
            out.setblocking(False)
            out.sendto("\n".join(assignments).encode(), where)
