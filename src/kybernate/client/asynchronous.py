"""The client that awaits, for programs that run an event loop. The same calls as the blocking one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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


class AsyncClient:
    """Connection to one agent. Every method raises AgentAway when none answers, else what the agent raised.

    Args:
        socket: the agent's socket; None for the default state directory's.
    """

    def __init__(self, socket: Path | None = None) -> None:
        self.socket = socket or StateDirectory.default().socket
        self._http = httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(self.socket)), base_url=BASE_URL)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def send(self, call: Call[A]) -> A:
        """Any call of `kybernate.client.calls`."""
        knock(self.socket)
        try:
            response = await self._http.request(
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

    async def node(self, *, ask: bool = False) -> api.NodeView:
        """The agent; with `ask` its tiers below RAM are asked first whether they answer."""
        return await self.send(calls.node(ask=ask))

    async def workloads(self) -> list[api.WorkloadView]:
        return (await self.send(calls.workloads())).workloads

    async def workload(self, name: str) -> api.WorkloadView:
        return await self.send(calls.workload(name))

    async def run(self, request: api.RunRequest) -> api.WorkloadView:
        """Start a workload; returns once its process runs."""
        return await self.send(calls.run(request))

    async def wait(self, name: str, *, timeout_s: float = 20.0) -> api.WorkloadView:
        """The workload once it has ended, or as it stands after `timeout_s`."""
        return await self.send(calls.wait(name, timeout_s))

    async def pause(
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
        return await self.send(calls.pause(name, depth, timeout_s, tier, connections, allow_changes))

    async def resume(
        self, name: str, *, timeout_s: float = api.TIMEOUT_S_DEFAULT, take_over: bool = False
    ) -> api.SwitchView:
        """Let it go on, from whichever tier it lies in; one that this agent doesn't know is looked for in its tiers."""
        return await self.send(calls.resume(name, timeout_s, take_over=take_over))

    async def prefetch(self, name: str) -> api.StoredView:
        """Read its content from the store into the pool, ahead of its resume."""
        return await self.send(calls.prefetch(name))

    async def snapshot(self, name: str, request: api.SnapshotRequest) -> api.StoredView:
        """Take an image of a workload; it runs on afterwards."""
        return await self.send(calls.snapshot(name, request))

    async def snapshots(self) -> api.SnapshotList:
        """All snapshots in all tiers, and what is wrong with those that could not be asked."""
        return await self.send(calls.snapshots())

    async def clone(
        self, image: str, name: str, *, count: int | None = None, timeout_s: float = api.TIMEOUT_S_DEFAULT
    ) -> api.CloneList:
        """Make the workload `name` of an image or, with a count, `name`-1 to `name`-count."""
        return await self.send(calls.clone(image, name, count, timeout_s))

    async def move(
        self,
        name: str,
        tier: TierName,
        *,
        connections: str | None = None,
        allow_changes: bool | None = None,
        keep: bool = False,
    ) -> api.StoredView:
        """Let a paused workload, or a snapshot, lie in another tier; with `keep` in both."""
        return await self.send(calls.move(name, tier, connections, allow_changes, keep=keep))

    async def remove_snapshot(self, name: str, *, tier: TierName | None = None) -> api.StoredView:
        return await self.send(calls.remove_snapshot(name, tier))

    async def verify(self, *names: str, tier: TierName | None = None, content: bool = True) -> list[api.VerifiedView]:
        """Compare what is stored with its hashes; without names everything. Without `content` only look whether it is there."""
        return (await self.send(calls.verify(names, tier, content=content))).tiers

    async def collect(
        self, *, tier: TierName | None = None, dry_run: bool = False, accept_loss: bool = False
    ) -> list[api.CollectedView]:
        """Remove what no snapshot needs."""
        return (await self.send(calls.collect(tier, dry_run=dry_run, accept_loss=accept_loss))).tiers

    async def jobs(self) -> list[api.JobView]:
        """Long steps of the store under way."""
        return (await self.send(calls.jobs())).jobs

    async def serving(self) -> api_serving.ServingView:
        """Models and jobs, their queues, what switches cost, who had the GPU."""
        return await self.send(calls.serving())

    async def plan(self, *models: str) -> api_serving.PlanView:
        """What would be done now, were there requests for these models."""
        return await self.send(calls.plan(models))

    async def start(self, name: str) -> api_serving.ServedView:
        """Start a model or a job of the configuration as soon as it gets room; returns at once."""
        return await self.send(calls.start(name))

    async def reload(self) -> api_serving.ReloadView:
        """Have the agent read its configuration again; nothing changes if it makes no sense."""
        return await self.send(calls.reload())

    async def stop(self, name: str, *, grace_s: float = api.GRACE_S_DEFAULT, remove: bool = False) -> api.StoppedView:
        return await self.send(calls.stop(name, grace_s, remove=remove))

    async def signal(self, name: str, number: Signals) -> api.WorkloadView:
        """Send a signal to its first process and that one's group."""
        return await self.send(calls.signal(name, number))

    async def remove(self, name: str) -> api.StoppedView:
        return await self.send(calls.remove(name))

    async def pause_external(self, pid: int, *, timeout_s: float = api.TIMEOUT_S_DEFAULT) -> api.SwitchView:
        return await self.send(calls.pause_external(pid, timeout_s))

    async def resume_external(self, pid: int) -> api.SwitchView:
        return await self.send(calls.resume_external(pid))

    async def explain(self, name: str) -> api.ExplainView:
        return await self.send(calls.explain(name))

    async def events(self, name: str | None = None, *, count: int = 50, after: int = 0) -> list[api.EventView]:
        return (await self.send(calls.events(name, count, after))).events

    async def history(self, since: float | None = None) -> HistoryView:
        """Who held VRAM when, and what each switch cost; the last hour if no point in time is given."""
        return await self.send(calls.history(since))

    async def shutdown(self, *, stop: bool = False, grace_s: float = api.GRACE_S_DEFAULT) -> api.NodeView:
        """Ask the agent to end; workloads run on, or are stopped first: it stays where one can't be, which Busy names."""
        return await self.send(calls.shutdown(stop=stop, grace_s=grace_s))

    async def logs(self, name: str, *, lines: int | None = None, follow: bool = False) -> AsyncIterator[bytes]:
        """The output in pieces as they come."""
        async with self._stream(calls.logs(name, lines=lines, follow=follow)) as response:
            async for piece in response.aiter_bytes():
                yield piece

    async def follow_events(self, name: str | None = None, *, count: int = 0) -> AsyncIterator[api.EventView]:
        """The last `count` events, then those that come; ends with the agent."""
        async for view in self._views(calls.follow_events(name, count)):
            yield view

    async def follow_node(self) -> AsyncIterator[NodeChange]:
        """The node, its workloads, jobs and events as they change; ends with the agent."""
        async for view in self._views(calls.follow_node()):
            yield view

    async def _views(self, stream: Stream) -> AsyncIterator[Any]:
        parser = calls.ServerEventParser()
        async with self._stream(stream) as response:
            async for line in response.aiter_lines():
                if (event := parser.line(line)) is not None and (view := calls.view_of(event)) is not None:
                    yield view

    @asynccontextmanager
    async def _stream(self, stream: Stream) -> AsyncIterator[httpx2.Response]:
        knock(self.socket)
        try:
            async with self._http.stream(
                "GET", stream.path, params=dict(stream.query), timeout=timeout(None)
            ) as response:
                if response.status_code >= 300:
                    raise calls.error_of(response.status_code, await response.aread())
                yield response
        except httpx2.TransportError as e:
            raise in_our_words(e, self.socket) from e
