"""Every call of the API as a value: method, path, body, type of the answer. No input or output happens here, so the
blocking and the asynchronous client share all of it, errors included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from signal import Signals
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from kybernate.model import api, api_serving, errors
from kybernate.model.api_history import HistoryView
from kybernate.model.types import Depth, TierName

A = TypeVar("A", bound=BaseModel)

_MARGIN_S = 30.0
"""How much longer than the order's own limit the client waits for its answer."""
_SWITCH_S = 600.0
"""A resume may have to pause others first and moves at disk-like speed in the worst case."""
_STORE_S = 7 * 86400.0
"""Into a bucket a large workload may take hours; how far it is can be asked meanwhile, and an agent that dies hangs up."""


@dataclass(frozen=True, slots=True)
class Call(Generic[A]):
    method: str
    path: str
    answer: type[A]
    body: BaseModel | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = _MARGIN_S

    @property
    def content(self) -> bytes | None:
        return None if self.body is None else self.body.model_dump_json().encode()

    def parse(self, status: int, content: bytes) -> A:
        """The answer's model.

        Raises:
            KybernateError: of the type the agent raised, or `failed` for what is no answer of an agent.
        """
        if status >= 300:
            raise error_of(status, content)
        try:
            return self.answer.model_validate_json(content)
        except ValidationError as e:
            raise errors.KybernateError(
                f"the agent's answer to {self.method} {self.path} makes no sense: {e.errors()[0]['msg']}",
                hint="agent and command line are of different versions? `kybernate version` shows both",
            ) from e


def error_of(status: int, content: bytes) -> errors.KybernateError:
    """The agent's error as the exception it was there."""
    try:
        view = api.ErrorView.model_validate_json(content)
    except ValidationError:
        return errors.KybernateError(f"the agent answered {status}: {content[:200].decode(errors='replace')!r}")
    kind = _by_code().get(view.code)
    if kind is None:
        kind = errors.BadInput if 400 <= status < 500 else errors.KybernateError
    return kind(view.message, hint=view.hint).reported_as(code=view.code, exit_status=view.exit_status)


def _by_code() -> Mapping[str, type[errors.KybernateError]]:
    found: dict[str, type[errors.KybernateError]] = {}
    line: list[type[errors.KybernateError]] = [errors.KybernateError]
    while line:
        kind = line.pop()
        found.setdefault(kind.code, kind)
        line.extend(kind.__subclasses__())
    return found


def _of(name: str, rest: str = "") -> str:
    return f"/v1/workloads/{quote(name, safe='')}{rest}"


def _snapshot(name: str, rest: str = "") -> str:
    return f"/v1/snapshots/{quote(name, safe='')}{rest}"


def node(*, ask: bool = False) -> Call[api.NodeView]:
    return Call("GET", "/v1/node", api.NodeView, query={"ask": "1"} if ask else {})


def workloads() -> Call[api.WorkloadList]:
    return Call("GET", "/v1/workloads", api.WorkloadList)


def workload(name: str) -> Call[api.WorkloadView]:
    return Call("GET", _of(name), api.WorkloadView)


def run(request: api.RunRequest) -> Call[api.WorkloadView]:
    return Call("POST", "/v1/workloads", api.WorkloadView, body=request, timeout_s=120)


def remove(name: str) -> Call[api.StoppedView]:
    return Call("DELETE", _of(name), api.StoppedView)


def pause(
    name: str, depth: Depth, timeout_s: float, tier: TierName, connections: str | None, allow_changes: bool | None
) -> Call[api.SwitchView]:
    body = api.PauseRequest.of(
        depth=depth, timeout_s=timeout_s, tier=tier, connections=connections, allow_changes=allow_changes
    )
    limit = timeout_s + (_SWITCH_S if tier is TierName.RAM else _STORE_S)
    return Call("POST", _of(name, "/pause"), api.SwitchView, body=body, timeout_s=limit)


def resume(name: str, timeout_s: float, *, take_over: bool) -> Call[api.SwitchView]:
    body = api.ResumeRequest.of(timeout_s=timeout_s, take_over=take_over)
    return Call("POST", _of(name, "/resume"), api.SwitchView, body=body, timeout_s=timeout_s + _STORE_S)


def prefetch(name: str) -> Call[api.StoredView]:
    return Call("POST", _of(name, "/prefetch"), api.StoredView, timeout_s=_STORE_S)


def snapshot(name: str, request: api.SnapshotRequest) -> Call[api.StoredView]:
    return Call("POST", _of(name, "/snapshot"), api.StoredView, body=request, timeout_s=_STORE_S)


def snapshots() -> Call[api.SnapshotList]:
    return Call("GET", "/v1/snapshots", api.SnapshotList, timeout_s=_SWITCH_S)


def move(
    name: str, tier: TierName, connections: str | None, allow_changes: bool | None, *, keep: bool
) -> Call[api.StoredView]:
    body = api.MoveRequest.of(tier=tier, connections=connections, allow_changes=allow_changes, keep=keep)
    return Call("POST", _snapshot(name, "/move"), api.StoredView, body=body, timeout_s=_STORE_S)


def clone(image: str, name: str, count: int | None, timeout_s: float) -> Call[api.CloneList]:
    body = api.CloneRequest.of(name=name, count=count, timeout_s=timeout_s)
    return Call("POST", _snapshot(image, "/clone"), api.CloneList, body=body, timeout_s=_STORE_S)


def remove_snapshot(name: str, tier: TierName | None) -> Call[api.StoredView]:
    query = {} if tier is None else {"tier": str(tier)}
    return Call("DELETE", _snapshot(name), api.StoredView, query=query, timeout_s=_SWITCH_S)


def verify(names: Sequence[str], tier: TierName | None, *, content: bool) -> Call[api.VerifiedList]:
    body = api.VerifyRequest.of(names=list(names), tier=tier, content=content)
    return Call("POST", "/v1/store/verify", api.VerifiedList, body=body, timeout_s=_STORE_S)


def collect(tier: TierName | None, *, dry_run: bool, accept_loss: bool) -> Call[api.CollectedList]:
    body = api.CollectRequest.of(tier=tier, dry_run=dry_run, accept_loss=accept_loss)
    return Call("POST", "/v1/store/gc", api.CollectedList, body=body, timeout_s=_STORE_S)


def jobs() -> Call[api.JobList]:
    return Call("GET", "/v1/jobs", api.JobList)


def serving() -> Call[api_serving.ServingView]:
    return Call("GET", "/v1/serving", api_serving.ServingView)


def plan(models: Sequence[str]) -> Call[api_serving.PlanView]:
    body = api_serving.PlanRequest.of(models=list(models))
    return Call("POST", "/v1/serving/plan", api_serving.PlanView, body=body)


def start(name: str) -> Call[api_serving.ServedView]:
    path = f"/v1/serving/served/{quote(name, safe='')}/start"
    return Call("POST", path, api_serving.ServedView)


def reload() -> Call[api_serving.ReloadView]:
    return Call("POST", "/v1/serving/reload", api_serving.ReloadView, timeout_s=_SWITCH_S)


def stop(name: str, grace_s: float, *, remove: bool) -> Call[api.StoppedView]:
    body = api.StopRequest.of(grace_s=grace_s, remove=remove)
    return Call("POST", _of(name, "/stop"), api.StoppedView, body=body, timeout_s=grace_s + _SWITCH_S)


def signal(name: str, number: Signals) -> Call[api.WorkloadView]:
    body = api.SignalRequest.of(signal=number.name)
    return Call("POST", _of(name, "/signal"), api.WorkloadView, body=body)


def explain(name: str) -> Call[api.ExplainView]:
    return Call("GET", _of(name, "/explain"), api.ExplainView)


def events(name: str | None, count: int, after: int) -> Call[api.EventList]:
    path = "/v1/events" if name is None else _of(name, "/events")
    return Call("GET", path, api.EventList, query={"count": str(count), "after": str(after)})


def history(since: float | None) -> Call[HistoryView]:
    query = {} if since is None else {"since": f"{since:.6f}"}
    return Call("GET", "/v1/history", HistoryView, query=query)


def wait(name: str, timeout_s: float) -> Call[api.WorkloadView]:
    query = {"timeout_s": f"{timeout_s:g}"}
    return Call("GET", _of(name, "/wait"), api.WorkloadView, query=query, timeout_s=timeout_s + _MARGIN_S)


def pause_external(pid: int, timeout_s: float) -> Call[api.SwitchView]:
    body = api.ExternalPauseRequest.of(pid=pid, timeout_s=timeout_s)
    return Call("POST", "/v1/external/pause", api.SwitchView, body=body, timeout_s=timeout_s + _SWITCH_S)


def resume_external(pid: int) -> Call[api.SwitchView]:
    body = api.ExternalResumeRequest.of(pid=pid)
    return Call("POST", "/v1/external/resume", api.SwitchView, body=body, timeout_s=_SWITCH_S)


def shutdown(*, stop: bool, grace_s: float) -> Call[api.NodeView]:
    body = api.ShutdownRequest.of(stop=stop, grace_s=grace_s)
    timeout_s = grace_s + _STORE_S if stop else _SWITCH_S
    return Call("POST", "/v1/node/shutdown", api.NodeView, body=body, timeout_s=timeout_s)


@dataclass(frozen=True, slots=True)
class Stream:
    """A call whose answer has no end: the log, or server-sent events."""

    path: str
    query: Mapping[str, str]


def logs(name: str, *, lines: int | None, follow: bool) -> Stream:
    query = {"follow": "1"} if follow else {}
    if lines is not None:
        query["lines"] = str(lines)
    return Stream(_of(name, "/logs"), query)


def follow_events(name: str | None, count: int) -> Stream:
    path = "/v1/events" if name is None else _of(name, "/events")
    return Stream(path, {"count": str(count), "follow": "1"})


def follow_node() -> Stream:
    return Stream("/v1/stream", {})


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event: `event` names the type of `data`, which is JSON."""

    event: str
    data: str


class ServerEventParser:
    """Lines of a text/event-stream in, events out. Comments (keep-alives) are dropped."""

    def __init__(self) -> None:
        self._event = "message"
        self._data: list[str] = []

    def line(self, line: str) -> ServerEvent | None:
        """Take one line without its end; the event it completes, if any."""
        if not line:
            event = ServerEvent(self._event, "\n".join(self._data)) if self._data else None
            self._event, self._data = "message", []
            return event
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "event":
            self._event = value
        elif key == "data":
            self._data.append(value)
        return None


_VIEWS: Mapping[str, type[BaseModel]] = {
    "node": api.NodeView,
    "workload": api.WorkloadView,
    "gone": api.GoneView,
    "jobs": api.JobList,
    "event": api.EventView,
}


NodeChange = api.NodeView | api.WorkloadView | api.GoneView | api.JobList | api.EventView
"""What the node's stream sends."""


def view_of(event: ServerEvent) -> Any:
    """The model of a server-sent event; None for a type this client does not know."""
    kind = _VIEWS.get(event.event)
    return None if kind is None else kind.model_validate_json(event.data)
