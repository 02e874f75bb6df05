"""Blocking work in threads that carry a name, so that a stack dump or `top -H` says who does what.

A thread per call instead of an executor: calls are few and long, and a queue of them behind a full executor would be a deadlock
between a resume and the pause that makes room for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_NAME_MAX = 15
"""The kernel cuts thread names there."""


async def in_thread(name: str, work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own and await its result.

    A cancelled caller stops waiting; the work itself goes on to its end, since half a pause would be worse than a late one.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # None is a T where work returns None

    def body() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as e:
            error = e
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            return  # the loop was closed: nobody waits any more

    threading.Thread(target=body, name=name[:_NAME_MAX], daemon=True).start()
    return await future
