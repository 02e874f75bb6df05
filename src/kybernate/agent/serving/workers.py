"""The agent's end of the activator's socket: who is connected, what each says, and what is said to all.

The socket is the agent user's own (mode 0600), and whoever connects is asked for its user by the kernel. A worker is known by its
process id; a new connection of the same process takes the place of the old one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from kybernate.model.caller import Caller
from kybernate.model.errors import BadInput
from kybernate.model.messages import LINE_MAX, Drained, Hello, Listening, Load, Message, decode, encode

log = logging.getLogger(__name__)

_UNREAD_MAX = 64 << 20
"""Bytes a worker may leave unread before it is given up: it hangs."""
_HELLO_S = 10.0


class Listener(Protocol):
    """Who hears what workers say. Called in the loop's thread."""

    def on_hello(self, pid: int, hello: Hello) -> None: ...

    def on_load(self, pid: int, load: Load) -> None: ...

    def on_drained(self, pid: int, drained: Drained) -> None: ...

    def on_disconnected(self, pid: int) -> None: ...


class Workers:
    """Use it in the loop's thread."""

    def __init__(self, *, path: Path, caller_of: Callable[[socket.socket], Caller]) -> None:
        """`caller_of`: who is on the other end of a connection, by the kernel."""
        self._path = path
        self._caller_of = caller_of
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._listening: set[int] = set()
        self._more_listen = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._listener: Listener | None = None

    @property
    def path(self) -> Path:
        return self._path

    def pids(self) -> frozenset[int]:
        """Those who are connected and have said hello."""
        return frozenset(self._writers)

    def listening(self) -> frozenset[int]:
        """Those to whom clients can connect."""
        return frozenset(self._listening)

    async def wait_for(self, pids: Collection[int]) -> None:
        """Until clients can connect to all of these."""
        while not self._listening >= set(pids):
            self._more_listen.clear()
            await self._more_listen.wait()

    async def listen(self, listener: Listener) -> None:
        """Raises BadInput where the socket can't be made."""
        self._listener = listener
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)
            bound.bind(str(self._path))
            self._path.chmod(0o600)  # before anybody can connect: it doesn't listen yet
        except OSError as e:
            bound.close()
            raise BadInput(f"can't listen on {self._path}: {e.strerror}", hint="see agent.state_dir") from e
        bound.setblocking(False)
        self._server = await asyncio.start_unix_server(self._serve, sock=bound, limit=LINE_MAX)

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for writer in list(self._writers.values()):
            writer.close()
        self._path.unlink(missing_ok=True)
        await self._server.wait_closed()
        self._server = None

    def tell(self, pid: int, message: Message) -> None:
        """To one worker; one that has gone is fine."""
        writer = self._writers.get(pid)
        if writer is None or writer.is_closing():
            return
        if writer.transport.get_write_buffer_size() > _UNREAD_MAX:
            log.error("activator worker %d doesn't read what it is told: given up", pid)
            writer.transport.abort()
            return
        writer.write(encode(message))

    def tell_all(self, message: Message) -> None:
        for pid in list(self._writers):
            self.tell(pid, message)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pid: int | None = None
        try:
            pid = await self._greet(reader, writer)
            if pid is not None:
                await self._hear(pid, reader)
        except (ValueError, asyncio.LimitOverrunError) as e:
            log.warning("activator worker %s says what makes no sense: %s", pid, e)
        except (OSError, TimeoutError) as e:
            log.info("activator worker %s: %s", pid, e)
        finally:
            if pid is not None and self._writers.get(pid) is writer:
                del self._writers[pid]
                self._listening.discard(pid)
                self._required_listener.on_disconnected(pid)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int | None:
        """The worker's process id; None: it is none of ours."""
        caller = self._caller_of(writer.get_extra_info("socket"))
        if caller.uid not in (0, os.geteuid()):
            log.error("process %d of user %d is no worker of the activator", caller.pid, caller.uid)
            return None
        async with asyncio.timeout(_HELLO_S):
            line = await reader.readline()
        hello = decode(line) if line else None
        if not isinstance(hello, Hello):
            log.error("process %d connected as a worker of the activator and said no hello", caller.pid)
            return None
        pid = hello.pid
        if (old := self._writers.get(pid)) is not None:
            old.transport.abort()
            self._required_listener.on_disconnected(pid)
        self._writers[pid] = writer
        self._listening.discard(pid)
        if hello.listening:
            self._listens(pid)
        self._required_listener.on_hello(pid, hello)
        return pid

    def _listens(self, pid: int) -> None:
        self._listening.add(pid)
        self._more_listen.set()

    async def _hear(self, pid: int, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            match decode(line):
                case Load() as load:
                    self._required_listener.on_load(pid, load)
                case Listening():
                    self._listens(pid)
                case Drained() as drained:
                    self._required_listener.on_drained(pid, drained)
                case _:
                    pass  # a newer worker's

    @property
    def _required_listener(self) -> Listener:
        assert self._listener is not None
        return self._listener
