"""Connections to one model: a pool of kept-alive ones, made in the model's network namespace.

Whether a request may be sent again is decided by what the kernel knows: if the other side's TCP has acknowledged none of its
bytes, no program there can have read any. That closes the race of a server that ends an idle connection while we take it.

A server may have answered without having read the request's body, and takes that for the next request: its answer must not go to
somebody else. Nobody can see from here what a program has read, so a connection that has carried a body is from then on for the
client that sent it, and closed with that client's, or when another client needs one.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar, cast

from kybernate.proxy.namespace_dialer import Place

CONNECTING_MAX: Final = 64
"""Attempts at once: listen backlogs of servers are some hundred, and a SYN that is dropped costs a second."""
CONNECTIONS_MAX: Final = 4096
"""Of one model; further requests wait for one of them."""
POOL_IDLE_S: Final = 4.0
"""Common servers close idle connections after 5 s; we are first."""
KEPT_S: Final = 0.1
"""For so long a connection that is idle is its client's in any case, so that one that asks again and again doesn't connect each
time; then it gives way to another client's, since a server may have a thread for each, and few of them."""
PATIENCE_S: Final = 10.0
"""How long connections are attempted to a model that should be there."""
_CONNECT_S: Final = 5.0
_FAREWELL_S: Final = 2.0
"""How long the other side gets to close its end; then the connection is reset."""
_HIGH_WATER: Final = 256 << 10
_TCP_INFO_BYTES_ACKED: Final = 120


class User(Protocol):
    """Who uses a connection: one request."""

    @property
    def client(self) -> object:
        """Whose it is: the same for all requests of one connection."""

    def connected(self, upstream: Upstream) -> None: ...

    def unreachable(self, why: str) -> None: ...

    def answer_data(self, data: bytes) -> None: ...

    def answer_end(self, error: Exception | None) -> None:
        """The connection is gone, by their side."""

    def request_paused(self, paused: bool) -> None:
        """The other side doesn't read."""


U = TypeVar("U", bound=User)


class Upstream(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_acked",
        "_ending",
        "_pool",
        "_reading_paused",
        "_socket",
        "idle_since",
        "kept_for",
        "sent",
        "sent_before",
        "transport",
        "used",
        "user",
        "write_paused",
    )

    def __init__(self, pool: Pool[Any], connection: socket.socket) -> None:
        self._pool = pool
        self._socket = connection
        self._acked = _bytes_acked(connection)
        self._ending = False
        self._reading_paused = False
        self.write_paused = False
        """The other side doesn't read; what is written is heaped up here."""
        self.transport: asyncio.Transport | None = None
        self.user: User | None = None
        self.used = 0
        """Requests that were sent on it."""
        self.sent = 0
        self.sent_before = 0
        self.idle_since = 0.0
        self.kept_for: object | None = None
        """The only client whose requests it may carry."""

    # -- for its user ----------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self.sent += len(data)
        if self.transport is not None:
            self.transport.write(data)

    def pause_reading(self) -> None:
        if not self._reading_paused and self.transport is not None and not self.transport.is_closing():
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused and self.transport is not None and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()

    @property
    def nothing_accepted(self) -> bool:
        """Whether the other side's TCP took no byte of what the present user sent."""
        acked = _bytes_acked(self._socket)
        return acked is not None and self._acked is not None and acked - self._acked <= self.sent_before

    @property
    def all_accepted(self) -> bool:
        """Whether the other side's TCP has all that was sent: if not, no program there has read it all."""
        if self.transport is None or self.transport.get_write_buffer_size():
            return False
        acked = _bytes_acked(self._socket)
        return acked is None or self._acked is None or acked - self._acked >= self.sent

    @property
    def looks_alive(self) -> bool:
        """And says nothing, since nobody asked. Costs a system call."""
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def release(self, *, reusable: bool, only_for: object | None = None) -> None:
        """Its user needs it no more. `only_for`: nobody but that client may have it from now on."""
        self.user = None
        if only_for is not None:
            self.kept_for = only_for
        self.resume_reading()  # a client that didn't read the end of its answer must not stop the next one's
        self._pool.released(self, reusable=reusable and not self.write_paused)

    def abort(self) -> None:
        """Its user needs it no more, and what it asked for neither."""
        self.user = None
        if self.transport is not None:
            self.transport.abort()

    def say_farewell(self) -> None:
        """Close, so that the other side has closed too before the connection counts as gone."""
        transport = self.transport
        if self._ending or transport is None:
            return
        self._ending = True
        if transport.is_closing():
            return
        try:
            transport.write_eof()
            self.resume_reading()
        except (OSError, RuntimeError):
            transport.abort()
        else:
            asyncio.get_running_loop().call_later(_FAREWELL_S, transport.abort)

    # -- asyncio ---------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's are none by class
        self.transport = transport
        transport.set_write_buffer_limits(high=_HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        if self.user is not None:
            self.user.answer_data(data)
        elif self.transport is not None:
            self.transport.abort()  # nobody asked: whatever it says must not be taken for the next answer

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.user is not None:
            self.user.request_paused(True)

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.user is not None:
            self.user.request_paused(False)

    def eof_received(self) -> bool:
        self._pool.vanished(self)
        user, self.user = self.user, None
        if user is not None:
            user.answer_end(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.vanished(self)
        user, self.user = self.user, None
        if user is not None:
            user.answer_end(exc)
        self.transport = None
        self._pool.closed(self)


class Pool(Generic[U]):
    """All connections to one place. `disconnected` is called each time the last of them is gone."""

    def __init__(self, place: Place, *, connected: Callable[[], None], disconnected: Callable[[], None]) -> None:
        self.place = place
        self._connected = connected
        self._disconnected = disconnected
        self._idle: list[Upstream] = []
        """For anybody."""
        self._kept: dict[object, Upstream] = {}
        """Idle, too, by their clients; the longest idle first."""
        self._waiting: deque[tuple[U, float]] = deque()
        self._count = 0
        """Connections there are, those that are attempted or closing included."""
        self._open: set[Upstream] = set()
        self._attempts: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._retry: asyncio.TimerHandle | None = None
        self._draining = False
        self._retired = False

    @property
    def size(self) -> int:
        return self._count

    def acquire(self, user: U, *, fresh: bool = False) -> None:
        """`user.connected` is called: at once if one is idle. `fresh`: one that was never used, or was seen to be alive."""
        own = self._kept.pop(user.client, None)
        if own is not None and own.transport is not None and not own.transport.is_closing():
            if own.looks_alive:
                self._hand_over(own, user)
                return
            own.transport.abort()
        while self._idle:
            upstream = self._idle.pop()
            if upstream.transport is None or upstream.transport.is_closing():
                continue
            if fresh and not upstream.looks_alive:
                upstream.transport.abort()
                continue
            self._hand_over(upstream, user)
            return
        now = time.monotonic()
        if self._kept:
            client, oldest = next(iter(self._kept.items()))
            if oldest.idle_since < now - KEPT_S or self._count >= CONNECTIONS_MAX:
                self.forget(client)
        self._waiting.append((user, now))
        self._connect_more()

    def forget(self, client: object) -> None:
        """End what is kept for it."""
        upstream = self._kept.pop(client, None)
        if upstream is not None:
            upstream.say_farewell()

    def withdraw(self, user: U) -> bool:
        """It waits for a connection no longer. False: it didn't."""
        for entry in self._waiting:
            if entry[0] is user:
                self._waiting.remove(entry)
                return True
        return False

    def withdraw_all(self) -> list[U]:
        """Oldest first."""
        users = [user for user, _ in self._waiting]
        self._waiting.clear()
        return users

    def released(self, upstream: Upstream, *, reusable: bool) -> None:
        transport = upstream.transport
        if transport is None or transport.is_closing():
            return
        if not reusable or self._retired:
            upstream.say_farewell()
        elif upstream.kept_for is not None:
            self._keep(upstream, upstream.kept_for)
        elif self._waiting:
            self._hand_over(upstream, self._waiting.popleft()[0])
        elif self._draining:
            upstream.say_farewell()
        else:
            upstream.idle_since = time.monotonic()
            self._idle.append(upstream)

    def close_idle(self, *, older_than: float | None = None) -> None:
        """`older_than`: only those idle since before that time."""
        kept = []
        for upstream in self._idle:
            if older_than is None or upstream.idle_since < older_than:
                upstream.say_farewell()
            else:
                kept.append(upstream)
        self._idle = kept
        for client, upstream in list(self._kept.items()):
            if older_than is None or upstream.idle_since < older_than:
                self.forget(client)

    def drain(self) -> None:
        """Keep no connection that nobody uses, until `refill`: the model is to be paused as soon as there is none."""
        self._draining = True
        self.close_idle()

    def refill(self) -> None:
        """Keep them again."""
        self._draining = False

    def abort(self) -> None:
        """Reset what is still there."""
        for attempt in self._attempts:
            attempt.cancel()
        for upstream in list(self._open):
            if upstream.transport is not None:
                upstream.transport.abort()

    def retire(self) -> None:
        """No connection is made or kept from now on; those in use end with their requests."""
        self._retired = True
        if self._retry is not None:
            self._retry.cancel()
        self.close_idle()
        self._close_place()

    # -- connections' own calls ------------------------------------------------------------------------------------------

    def vanished(self, upstream: Upstream) -> None:
        """It can't be used any more."""
        if upstream.user is None and upstream in self._idle:
            self._idle.remove(upstream)
        elif self._kept.get(upstream.kept_for) is upstream:
            del self._kept[upstream.kept_for]

    def closed(self, upstream: Upstream | None = None) -> None:
        """One is gone, or an attempt at one."""
        if upstream is not None:
            self._open.discard(upstream)
        self._count -= 1
        if self._waiting:
            self._connect_more()
        if not self._count:
            self._disconnected()
            self._close_place()

    # -- inside ----------------------------------------------------------------------------------------------------------

    def _close_place(self) -> None:
        if self._retired and not self._count:
            self.place.close()

    def _keep(self, upstream: Upstream, client: object) -> None:
        self.forget(client)  # one is enough
        if self._draining or (self._waiting and self._count >= CONNECTIONS_MAX):
            upstream.say_farewell()
        else:
            upstream.idle_since = time.monotonic()
            self._kept[client] = upstream

    def _hand_over(self, upstream: Upstream, user: User) -> None:
        upstream.user = user
        upstream.sent_before = upstream.sent
        upstream.used += 1
        user.connected(upstream)

    def _connect_more(self) -> None:
        if self._retry is not None or self._retired:
            return
        wanted = min(len(self._waiting), CONNECTING_MAX, CONNECTIONS_MAX - self._count + len(self._attempts))
        for _ in range(wanted - len(self._attempts)):
            self._count += 1
            self._connected()
            task = asyncio.get_running_loop().create_task(self._attempt())
            self._attempts.add(task)
            task.add_done_callback(self._attempt_over)

    def _attempt_over(self, task: asyncio.Task[None]) -> None:
        self._attempts.discard(task)
        if self._waiting:
            self._connect_more()

    async def _attempt(self) -> None:
        made: socket.socket | None = None
        try:
            made, address = self.place.new_socket(self._failures)
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(_CONNECT_S):
                await loop.sock_connect(made, address)
            upstream = Upstream(self, made)
            await loop.create_connection(lambda: upstream, sock=made)
        except (OSError, TimeoutError) as e:
            if made is not None:
                made.close()
            self._failed(e)
            return
        self._failures = 0
        self._open.add(upstream)
        self.released(upstream, reusable=True)

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        now = time.monotonic()
        while self._waiting and now - self._waiting[0][1] > PATIENCE_S:
            self._waiting.popleft()[0].unreachable(str(error) or type(error).__name__)
        if self._waiting and self._retry is None and not self._retired:
            delay = min(0.5, 0.005 * 2 ** min(self._failures, 10))
            self._retry = asyncio.get_running_loop().call_later(delay, self._try_again)
        self.closed()

    def _try_again(self) -> None:
        self._retry = None
        self._connect_more()


def _bytes_acked(connection: socket.socket) -> int | None:
    """Of what was sent, and its SYN. None: this kernel doesn't say."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES_ACKED + 8)
    except OSError:
        return None
    if len(info) < _TCP_INFO_BYTES_ACKED + 8:
        return None
    return int.from_bytes(info[_TCP_INFO_BYTES_ACKED:], sys.byteorder)
