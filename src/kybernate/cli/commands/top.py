"""top: watch the node, and order its workloads about; drawn again whenever something changes.

The main thread draws; others wait for the agent's stream, for its queues, for keys and for the answers to orders, and put what
comes into one line. They are daemons: whatever they wait for ends with the process, and an order that was given goes on in the
agent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live

from kybernate.cli.commands.looking import ps
from kybernate.cli.common import Common
from kybernate.cli.fitting import plain
from kybernate.cli.keyboard import read_keys, single_keys
from kybernate.cli.watching import Seen, picture
from kybernate.client import Client
from kybernate.model.api import EventView, GoneView, JobList, NodeView, WorkloadView
from kybernate.model.api_serving import ServingView
from kybernate.model.errors import KybernateError
from kybernate.model.quantities import format_seconds

_COMMON = Common()
_EVENTS = 50
_SERVING_S = 1.0
_CLOCK_S = 1.0
_ROWS = {"up": -1, "down": 1, "k": -1, "j": 1, "page up": -10, "page down": 10, "home": -(1 << 30), "end": 1 << 30}

Change = Callable[[Seen], Seen]


class _Ended(Exception):
    """No error: somebody pressed q, or the agent ended."""


def top(*, common: Common = _COMMON) -> None:
    """Watch the node; p, r and f pause, resume and prefetch the chosen workload. Without a terminal it prints once."""
    console = Console()
    if common.json or not console.is_terminal:
        ps(common=common)
        return
    with common.client() as client:
        client.node()  # no agent is an error in one line, not a screen
    changes: queue.SimpleQueue[Change] = queue.SimpleQueue()
    with single_keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        _begin("stream", lambda: _follow(common, changes))
        _begin("queues", lambda: _ask(common, changes))
        if keys is not None:
            _begin("keys", lambda: _listen(keys, common, changes))
        seen = Seen()
        with contextlib.suppress(_Ended):
            while True:
                for change in _waiting(changes):
                    seen = change(seen)
                live.update(picture(seen, width=console.width, height=console.height), refresh=True)


def _waiting(changes: queue.SimpleQueue[Change]) -> Iterator[Change]:
    """What has come, at least one or a second; a burst is drawn once."""
    with contextlib.suppress(queue.Empty):
        yield changes.get(timeout=_CLOCK_S)
        while True:
            yield changes.get_nowait()


def _begin(name: str, work: Callable[[], None]) -> None:
    threading.Thread(target=work, name=name, daemon=True).start()


def _end(_: Seen) -> Seen:
    raise _Ended


# -- the agent -------------------------------------------------------------------------------------------------------


def _follow(common: Common, changes: queue.SimpleQueue[Change]) -> None:
    try:
        with common.client() as client:
            past = client.events(count=_EVENTS)
            changes.put(lambda seen: dataclasses.replace(seen, events=past))
            for view in client.follow_node():
                changes.put(lambda seen, view=view: with_message(seen, view))  # type: ignore[misc]
    except KybernateError:
        pass
    changes.put(_end)


def with_message(seen: Seen, view: NodeView | WorkloadView | GoneView | JobList | EventView) -> Seen:
    """The state after a message of the stream. Pure."""
    match view:
        case NodeView():
            return dataclasses.replace(seen, node=view)
        case WorkloadView():
            chosen = view.name if seen.chosen is None else seen.chosen
            return dataclasses.replace(seen, workloads={**seen.workloads, view.name: view}, chosen=chosen)
        case GoneView():
            left = {name: one for name, one in seen.workloads.items() if name != view.workload}
            still = seen.chosen if seen.chosen in left else next(iter(sorted(left)), None)
            return dataclasses.replace(seen, workloads=left, chosen=still)
        case JobList():
            return dataclasses.replace(seen, jobs=view.jobs)
        case EventView():
            return dataclasses.replace(seen, events=[*seen.events, view][-_EVENTS:])


def _ask(common: Common, changes: queue.SimpleQueue[Change]) -> None:
    pause = threading.Event()
    while True:
        with contextlib.suppress(KybernateError), common.client() as client:
            view: ServingView = client.serving()
            changes.put(lambda seen, view=view: dataclasses.replace(seen, serving=view))  # type: ignore[misc]
        pause.wait(_SERVING_S)


# -- keys and orders -------------------------------------------------------------------------------------------------


def _listen(descriptor: int, common: Common, changes: queue.SimpleQueue[Change]) -> None:
    while keys := read_keys(descriptor):
        for key in keys:
            changes.put(lambda seen, key=key: _pressed(seen, key, common, changes))  # type: ignore[misc]
    changes.put(_end)


def _pressed(seen: Seen, key: str, common: Common, changes: queue.SimpleQueue[Change]) -> Seen:
    if key in _ROWS:
        return seen.choose(_ROWS[key])
    if key in ("q", "Q"):
        raise _Ended
    order = {"p": _pause, "r": _resume, "f": _prefetch}.get(key)
    if order is None or seen.chosen is None:
        return seen
    name = seen.chosen
    _begin(f"{key} {name}", lambda: _give(order, name, common, changes))
    word = {"p": "pausing", "r": "resuming", "f": "prefetching"}[key]
    return dataclasses.replace(seen, said=f"{word} {name} ...")


def _give(order: Callable[[Client, str], str], name: str, common: Common, changes: queue.SimpleQueue[Change]) -> None:
    try:
        with common.client() as client:
            said = order(client, name)
    except KybernateError as e:
        said = f"{e.message} ({e.hint})" if e.hint else e.message
    changes.put(lambda seen: dataclasses.replace(seen, said=plain(said)))


def _pause(client: Client, name: str) -> str:
    view = client.pause(name)
    return f"{name}: {view.note}" if view.already else f"{name}: paused in {format_seconds(view.seconds)}"


def _resume(client: Client, name: str) -> str:
    view = client.resume(name)
    return f"{name}: {view.note}" if view.already else f"{name}: resumed in {format_seconds(view.seconds)}"


def _prefetch(client: Client, name: str) -> str:
    view = client.prefetch(name)
    return f"{name}: {view.note}" if view.already else f"{name}: in RAM in {format_seconds(view.seconds)}"
