"""Wakes the controller: whoever has changed something that it decides by calls this."""

from __future__ import annotations

import asyncio


class Wake:
    """Use it in the loop's thread."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def __call__(self) -> None:
        self._event.set()

    async def wait(self, timeout_s: float) -> None:
        """Until somebody called, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            pass
        self._event.clear()
