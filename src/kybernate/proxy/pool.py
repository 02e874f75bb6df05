"""All connections to one model: they are kept alive, and made in the model's network namespace.

A server may have answered without having read the request's body, and takes that for the next request: its answer must not go to
somebody else. Nobody can see from here what a program has read, so a connection that has carried a body is from then on for the
client that sent it, and closed with that client's, or when another client needs one.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from kybernate.proxy.namespace_dialer import NamespaceDialer
from kybernate.proxy.upstream import Upstream, User

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

U = TypeVar("U", bound=User)


class _Idle:
    """Connections that nobody uses."""

    def __init__(self) -> None:
        self._free: list[Upstream] = []
        """For anybody."""
        self.kept: dict[object, Upstream] = {}
        """By the only clients that may have them; the longest idle first."""

    def put(self, upstream: Upstream) -> None:
        if upstream.kept_for is None:
            self._free.append(upstream)
        else:
            self.kept[upstream.kept_for] = upstream

    def take(self, client: object, *, fresh: bool) -> Upstream | None:
        """One that `client` may have. `fresh`: one that was seen to be alive; a client's own is, in any case."""
        own = self.kept.pop(client, None)
        if own is not None and own.transport is not None and not own.transport.is_closing():
            if own.looks_alive:
                return own
            own.transport.abort()
        while self._free:
            upstream = self._free.pop()
            if upstream.transport is None or upstream.transport.is_closing():
                continue
            if fresh and not upstream.looks_alive:
                upstream.transport.abort()
                continue
            return upstream
        return None

    def discard(self, upstream: Upstream) -> None:
        if upstream.user is None and upstream in self._free:
            self._free.remove(upstream)
        elif self.kept.get(upstream.kept_for) is upstream:
            del self.kept[upstream.kept_for]

    def take_since(self, older_than: float | None) -> list[Upstream]:
        """Those that are idle since before that time; None: all."""
        old = [*self._free, *self.kept.values()]
        if older_than is not None:
            old = [each for each in old if each.idle_since < older_than]
            self._free = [each for each in self._free if each.idle_since >= older_than]
        else:
            self._free = []
        for upstream in old:
            if upstream.kept_for is not None:
                del self.kept[upstream.kept_for]
        return old


class Pool(Generic[U]):
    """`disconnected` is called each time the last of them is gone."""

    def __init__(
        self, dialer: NamespaceDialer, *, connected: Callable[[], None], disconnected: Callable[[], None]
    ) -> None:
        self.dialer = dialer
        self._connected = connected
        self._disconnected = disconnected
        self._idle = _Idle()
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
        upstream = self._idle.take(user.client, fresh=fresh)
        if upstream is not None:
            upstream.serve(user)
            return
        now = time.monotonic()
        if self._idle.kept:
            client, oldest = next(iter(self._idle.kept.items()))
            if oldest.idle_since < now - KEPT_S or self._count >= CONNECTIONS_MAX:
                self.forget(client)
        self._waiting.append((user, now))
        self._connect_more()

    def forget(self, client: object) -> None:
        """End what is kept for it."""
        upstream = self._idle.kept.pop(client, None)
        if upstream is not None:
            upstream.close_gracefully()

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
            upstream.close_gracefully()
        elif upstream.kept_for is not None:
            if upstream.kept_for in self._idle.kept:
                self.forget(upstream.kept_for)  # one is enough
            if self._draining or (self._waiting and self._count >= CONNECTIONS_MAX):
                upstream.close_gracefully()
            else:
                self._idle.put(upstream)
        elif self._waiting:
            upstream.serve(self._waiting.popleft()[0])
        elif self._draining:
            upstream.close_gracefully()
        else:
            self._idle.put(upstream)

    def close_idle(self, *, older_than: float | None = None) -> None:
        """`older_than`: only those idle since before that time."""
        for upstream in self._idle.take_since(older_than):
            upstream.close_gracefully()

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
        self._close_dialer()

    # -- connections' own calls ------------------------------------------------------------------------------------------

    def vanished(self, upstream: Upstream) -> None:
        """It can't be used any more."""
        self._idle.discard(upstream)

    def closed(self, upstream: Upstream | None = None) -> None:
        """One is gone, or an attempt at one."""
        if upstream is not None:
            self._open.discard(upstream)
        self._count -= 1
        if self._waiting:
            self._connect_more()
        if not self._count:
            self._disconnected()
            self._close_dialer()

    # -- inside ----------------------------------------------------------------------------------------------------------

    def _close_dialer(self) -> None:
        if self._retired and not self._count:
            self.dialer.close()

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
            made, address = self.dialer.new_socket(self._failures)
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
