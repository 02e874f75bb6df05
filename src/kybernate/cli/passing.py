"""Signals that a waiting command gets are the workload's: a script, Slurm or systemd ends what it started."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from kybernate.cli.common import Common, say
from kybernate.model.errors import KybernateError

_PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@contextlib.contextmanager
def passed_on(name: str, common: Common) -> Iterator[None]:
    """While the block runs, signals go to the workload instead of ending this process; a second SIGINT is KeyboardInterrupt.

    For the main thread. A signal that can't be delivered is said, and does nothing.
    """
    interrupted = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if number == signal.SIGINT and interrupted:
            raise KeyboardInterrupt
        interrupted = interrupted or number == signal.SIGINT
        _pass_on(signal.Signals(number), name, common)

    # One that is ignored, as SIGHUP is under nohup, stays so.
    before = {number: signal.getsignal(number) for number in _PASSED_ON}
    taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


def _pass_on(number: signal.Signals, name: str, common: Common) -> None:
    try:
        with common.client() as client:
            view = client.signal(name, number)
    except KybernateError as e:
        say(f"kybernate: {number.name} was not passed on to {name}: {e}")
        return
    if view.state == "paused":
        say(f"kybernate: {name} is paused: it gets {number.name} when it is resumed; `kybernate stop {name}` ends it")
    elif number == signal.SIGINT:
        say(f"kybernate: SIGINT was passed on to {name}; once more, and it is left running")
