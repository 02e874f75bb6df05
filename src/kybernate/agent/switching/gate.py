"""What switching asks of whoever lets requests through to a workload: nobody's are at it when it is paused, and all are let through
again when it runs. Called in the workload's owner task."""

from __future__ import annotations

from typing import Protocol

from kybernate.model.types import WorkloadName


class RequestGate(Protocol):
    async def close(self, name: WorkloadName, *, timeout_s: float, by_arbiter: bool) -> None:
        """Hold new requests and wait for those in flight.

        Raises:
            Busy: they didn't end within `timeout_s`; it goes on answering.
        """

    def hold(self, name: WorkloadName) -> None:
        """Hold new requests; those in flight wait with it."""

    def on_pause_aborted(self, name: WorkloadName) -> None:
        """It was closed, and runs on all the same."""

    def on_resumed(self, name: WorkloadName, *, tier: str, seconds: float, victims: tuple[WorkloadName, ...]) -> None:
        """It was resumed.

        Args:
            tier: where it came from.
            victims: who was paused for it.
        """

    def on_requested(self, name: WorkloadName) -> None:
        """A person ordered its resume."""

    def port_of(self, name: WorkloadName) -> int | None:
        """Where it is asked by us: connections to there are closed with the gate. None: nowhere."""
