"""The connection to the agent: one at a time, made again for as long as the worker lives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from kybernate.model.messages import LINE_MAX, End, Load, Message, decode, encode

_BACKOFF_S: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Between attempts: an agent that was restarted is found at once, one that is away isn't hammered."""
_GONE_S: Final = 10.0
"""For answers under way, when nobody will ever say more: as `End` gives by default."""
_UNREAD_MAX: Final = 1 << 20
"""Bytes that the agent hasn't read; above it loads are left out, since newer ones follow."""

log = structlog.get_logger()


class AgentChannel:
    """`greeting` gives the first messages of each connection. `on_message` is called for each of the agent's, and
    `on_disconnected` when it is gone."""

    def __init__(
        self,
        path: str,
        *,
        on_message: Callable[[Message], None],
        greeting: Callable[[], list[Message]],
        on_disconnected: Callable[[], None],
    ) -> None:
        self._path = path
        self._on_message = on_message
        self._greeting = greeting
        self._on_disconnected = on_disconnected
        self._writer: asyncio.StreamWriter | None = None

    def send(self, message: Message) -> None:
        """Without an agent nobody is told: the next one gets all that matters in the hello."""
        writer = self._writer
        if writer is None or writer.is_closing():
            return
        if isinstance(message, Load) and writer.transport.get_write_buffer_size() > _UNREAD_MAX:
            return
        writer.write(encode(message))

    async def run(self) -> None:
        failures = 0
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path, limit=LINE_MAX)
            except OSError as e:
                if not Path(self._path).parent.is_dir():
                    log.warning("the agent's directory is gone, so none will come back", socket=self._path)
                    self._on_message(End(grace_s=_GONE_S))
                    return
                if not failures:
                    log.warning("the agent isn't there; trying on", socket=self._path, error=str(e))
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1
                continue
            failures = 0
            self._writer = writer
            try:
                for message in self._greeting():
                    writer.write(encode(message))
                await self._listen(reader)
            except OSError as e:
                log.warning("the line to the agent broke", error=str(e))
            finally:
                self._writer = None
                writer.close()
                self._on_disconnected()
            await asyncio.sleep(_BACKOFF_S[0])

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await reader.readline()
            except ValueError:
                log.warning("a message of the agent is too long; connecting anew", limit=LINE_MAX)
                return
            if not line.endswith(b"\n"):
                return
            try:
                message = decode(line)
            except ValueError as e:
                log.warning("a message of the agent can't be read", error=str(e))
                continue
            if message is None:
                continue
            try:
                self._on_message(message)
            except Exception:
                # A fault with one model must not end the streams of all others.
                log.exception("a message of the agent could not be carried out", kind=message.kind)
