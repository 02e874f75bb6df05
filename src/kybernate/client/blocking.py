"""The client that blocks; the command line uses it.

Made of asynchronous.py by scripts/blocking_client.py: change that, then run this.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import Signals
from types import TracebackType
from typing import Any, Self

import httpx2

from kybernate.client import calls
from kybernate.client.calls import A, Call, NodeChange, Stream
from kybernate.client.transport import BASE_URL, in_our_words, knock, timeout
from kybernate.model import api, api_serving
from kybernate.model.api_history import HistoryView
from kybernate.model.layout import StateDirectory
from kybernate.model.types import Depth, TierName


class Client:
    """Connection to one agent. Every method raises AgentAway when none answers, else what the agent raised.

    Args:
        socket: the agent's socket; None for the default state directory's.
    """

    def __init__(self, socket: Path | None = None) -> None:
        self.socket = socket or StateDirectory.default().socket
        self._http = httpx2.Client(transport=httpx2.HTTPTransport(uds=str(self.socket)), base_url=BASE_URL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def send(self, call: Call[A]) -> A:
        """Any call of `kybernate.client.calls`."""
        knock(self.socket)
        try:
            response = self._http.request(
                call.method,
                call.path,
                params=dict(call.query),
                content=call.content,
                headers={"content-type": "application/json"},
                timeout=timeout(call.timeout_s),
            )
        except httpx2.TransportError as e:
            raise in_our_words(e, self.socket) from e
        return call.parse(response.status_code, response.content)

    def node(self, *, ask: bool = False) -> api.NodeView:
        """The agent; with `ask` its tiers below RAM are asked first whether they answer."""
        return self.send(calls.node(ask=ask))

    def workloads(self) -> list[api.WorkloadView]:
        return self.send(calls.workloads()).workloads

    def workload(self, name: str) -> api.WorkloadView:
        return self.send(calls.workload(name))

    def run(self, request: api.RunRequest) -> api.WorkloadView:
        """Start a workload; returns once its process runs."""
        return self.send(calls.run(request))

    def wait(self, name: str, *, timeout_s: float = 20.0) -> api.WorkloadView:
        """The workload once it has ended, or as it stands after `timeout_s`."""
        return self.send(calls.wait(name, timeout_s))

    def pause(
        self,
        name: str,
        *,
        depth: Depth = Depth.ZERO,
        timeout_s: float = api.TIMEOUT_S_DEFAULT,
        tier: TierName = TierName.RAM,
        connections: str | None = None,
        allow_changes: bool | None = None,
    ) -> api.SwitchView:
        """Give its VRAM back; with a tier below RAM its state goes into the store and its processes end.

        Args:
            connections: `refuse` or `close` those that lead out of it; None: as the agent's settings say.
            allow_changes: below RAM, also where it would notice a change; the answer's `notes` name them.
        """
        return self.send(calls.pause(name, depth, timeout_s, tier, connections, allow_changes))

    def resume(self, name: str, *, timeout_s: float = api.TIMEOUT_S_DEFAULT, take_over: bool = False) -> api.SwitchView:
        """Let it go on, from whichever tier it lies in; one that this agent doesn't know is looked for in its tiers."""
        return self.send(calls.resume(name, timeout_s, take_over=take_over))

    def prefetch(self, name: str) -> api.StoredView:
        """Read its content from the store into the pool, ahead of its resume."""
        return self.send(calls.prefetch(name))

    def snapshot(self, name: str, request: api.SnapshotRequest) -> api.StoredView:
        """Take an image of a workload; it runs on afterwards."""
        return self.send(calls.snapshot(name, request))

    def snapshots(self) -> api.SnapshotList:
        """All snapshots in all tiers, and what is wrong with those that could not be asked."""
        return self.send(calls.snapshots())

    def clone(
        self, image: str, name: str, *, count: int | None = None, timeout_s: float = api.TIMEOUT_S_DEFAULT
    ) -> api.CloneList:
        """Make the workload `name` of an image or, with a count, `name`-1 to `name`-count."""
        return self.send(calls.clone(image, name, count, timeout_s))

    def move(
        self,
        name: str,
        tier: TierName,
        *,
        connections: str | None = None,
        allow_changes: bool | None = None,
        keep: bool = False,
    ) -> api.StoredView:
        """Let a paused workload, or a snapshot, lie in another tier; with `keep` in both."""
        return self.send(calls.move(name, tier, connections, allow_changes, keep=keep))

    def remove_snapshot(self, name: str, *, tier: TierName | None = None) -> api.StoredView:
        return self.send(calls.remove_snapshot(name, tier))

    def verify(self, *names: str, tier: TierName | None = None, content: bool = True) -> list[api.VerifiedView]:
        """Compare what is stored with its hashes; without names everything. Without `content` only look whether it is there."""
        return self.send(calls.verify(names, tier, content=content)).tiers

    def collect(
        self, *, tier: TierName | None = None, dry_run: bool = False, accept_loss: bool = False
    ) -> list[api.CollectedView]:
        """Remove what no snapshot needs."""
        return self.send(calls.collect(tier, dry_run=dry_run, accept_loss=accept_loss)).tiers

    def jobs(self) -> list[api.JobView]:
        """Long steps of the store under way."""
        return self.send(calls.jobs()).jobs

    def serving(self) -> api_serving.ServingView:
        """Models and jobs, their queues, what switches cost, who had the GPU."""
        return self.send(calls.serving())

    def plan(self, *models: str) -> api_serving.PlanView:
        """What would be done now, were there requests for these models."""
        return self.send(calls.plan(models))

    def start(self, name: str) -> api_serving.ServedView:
        """Start a model or a job of the configuration as soon as it gets room; returns at once."""
        return self.send(calls.start(name))

    def reload(self) -> api_serving.ReloadView:
        """Have the agent read its configuration again; nothing changes if it makes no sense."""
        return self.send(calls.reload())

    def stop(self, name: str, *, grace_s: float = api.GRACE_S_DEFAULT, remove: bool = False) -> api.StoppedView:
        return self.send(calls.stop(name, grace_s, remove=remove))

    def signal(self, name: str, number: Signals) -> api.WorkloadView:
        """Send a signal to its first process and that one's group."""
        return self.send(calls.signal(name, number))

    def remove(self, name: str) -> api.StoppedView:
        return self.send(calls.remove(name))

    def pause_external(self, pid: int, *, timeout_s: float = api.TIMEOUT_S_DEFAULT) -> api.SwitchView:
        return self.send(calls.pause_external(pid, timeout_s))

    def resume_external(self, pid: int) -> api.SwitchView:
        return self.send(calls.resume_external(pid))

    def explain(self, name: str) -> api.ExplainView:
        return self.send(calls.explain(name))

    def events(self, name: str | None = None, *, count: int = 50, after: int = 0) -> list[api.EventView]:
        return self.send(calls.events(name, count, after)).events

    def history(self, since: float | None = None) -> HistoryView:
        """Who held VRAM when, and what each switch cost; the last hour if no point in time is given."""
        return self.send(calls.history(since))

    def shutdown(self, *, stop: bool = False, grace_s: float = api.GRACE_S_DEFAULT) -> api.NodeView:
        """Ask the agent to end; workloads run on, or are stopped first: it stays where one can't be, which Busy names."""
        return self.send(calls.shutdown(stop=stop, grace_s=grace_s))

    def logs(self, name: str, *, lines: int | None = None, follow: bool = False) -> Iterator[bytes]:
        """The output in pieces as they come."""
        with self._stream(calls.logs(name, lines=lines, follow=follow)) as response:
            yield from response.iter_bytes()

    def follow_events(self, name: str | None = None, *, count: int = 0) -> Iterator[api.EventView]:
        """The last `count` events, then those that come; ends with the agent."""
        yield from self._views(calls.follow_events(name, count))

    def follow_node(self) -> Iterator[NodeChange]:
        """The node, its workloads, jobs and events as they change; ends with the agent."""
        yield from self._views(calls.follow_node())

    def _views(self, stream: Stream) -> Iterator[Any]:
        parser = calls.ServerEventParser()
        with self._stream(stream) as response:
            for line in response.iter_lines():
                if (event := parser.line(line)) is not None and (view := calls.view_of(event)) is not None:
                    yield view

    @contextmanager
    def _stream(self, stream: Stream) -> Iterator[httpx2.Response]:
        knock(self.socket)
        try:
            with self._http.stream("GET", stream.path, params=dict(stream.query), timeout=timeout(None)) as response:
                if response.status_code >= 300:
                    raise calls.error_of(response.status_code, response.read())
                yield response
        except httpx2.TransportError as e:
            raise in_our_words(e, self.socket) from e
