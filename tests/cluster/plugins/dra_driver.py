"""A DRA driver's kubelet plugin: `python -m tests.cluster.plugins.dra_driver DRIVER`, run on a node as root.

Prepares every claim by writing a CDI specification for it: the container finds CLAIM=uid in its environment and /dev/claimed, which
is /dev/null. The claim's devices come on standard input, one JSON object a line, from whoever may read the API:
{"uid": ..., "devices": [{"request": ..., "pool": ..., "device": ...}]}. Says one JSON object a line what happens.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc
from tests.cluster.plugins.interfaces import load

PLUGINS = Path("/var/lib/kubelet/plugins")
REGISTRY = Path("/var/lib/kubelet/plugins_registry")
CDI = Path("/run/cdi")


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


class Driver:
    """The service a kubelet calls for claims."""

    def __init__(self, messages: Any, name: str) -> None:
        self._messages = messages
        self._name = name
        self.allocations: dict[str, list[dict[str, str]]] = {}
        self.changed = asyncio.Condition()

    async def NodePrepareResources(self, request: Any, _context: Any) -> Any:  # noqa: N802 - gRPC's name
        answer = self._messages.NodePrepareResourcesResponse()
        for claim in request.claims:
            say(event="prepare", claim=claim.name, uid=claim.uid)
            async with self.changed, asyncio.timeout(20):
                while claim.uid not in self.allocations:
                    await self.changed.wait()
            for one in self.allocations[claim.uid]:
                answer.claims[claim.uid].devices.append(
                    self._messages.Device(
                        request_names=[one["request"]],
                        pool_name=one["pool"],
                        device_name=one["device"],
                        cdi_device_ids=[self._expose(claim.uid)],
                    )
                )
        return answer

    async def NodeUnprepareResources(self, request: Any, _context: Any) -> Any:  # noqa: N802
        answer = self._messages.NodeUnprepareResourcesResponse()
        for claim in request.claims:
            say(event="unprepare", claim=claim.name, uid=claim.uid)
            self._specification(claim.uid).unlink(missing_ok=True)
            answer.claims[claim.uid].error = ""
        return answer

    def _specification(self, uid: str) -> Path:
        return CDI / f"{self._name}-{uid}.json"

    def _expose(self, uid: str) -> str:
        CDI.mkdir(exist_ok=True)
        edits = {"env": [f"CLAIM={uid}"], "deviceNodes": [{"path": "/dev/claimed", "hostPath": "/dev/null"}]}
        specification = {
            "cdiVersion": "0.6.0",
            "kind": f"{self._name}/claim",
            "devices": [{"name": uid, "containerEdits": edits}],
        }
        unfinished = self._specification(uid).with_suffix(".new")
        unfinished.write_text(json.dumps(specification))
        unfinished.replace(self._specification(uid))
        return f"{self._name}/claim={uid}"


class Registration:
    """The service by which a kubelet finds out what a socket in its registry is."""

    def __init__(self, messages: Any, name: str, endpoint: Path) -> None:
        self._messages = messages
        self._name = name
        self._endpoint = endpoint

    async def GetInfo(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        return self._messages.PluginInfo(
            type="DRAPlugin", name=self._name, endpoint=str(self._endpoint), supported_versions=["v1.DRAPlugin"]
        )

    async def NotifyRegistrationStatus(self, request: Any, _context: Any) -> Any:  # noqa: N802
        say(event="registered", registered=request.plugin_registered, error=request.error)
        return self._messages.RegistrationStatusResponse()


async def serve(name: str) -> None:
    """Serve until SIGTERM."""
    with tempfile.TemporaryDirectory() as generated:
        dra, dra_services = load("dra", Path(generated))
        registration, registration_services = load("pluginregistration", Path(generated))
    endpoint = PLUGINS / name / "dra.sock"
    endpoint.parent.mkdir(parents=True, exist_ok=True)
    server = grpc.aio.server()
    driver = Driver(dra, name)
    dra_services.add_DRAPluginServicer_to_server(driver, server)
    server.add_insecure_port(f"unix://{endpoint}")
    await server.start()
    # The registry's socket last: the kubelet asks as soon as it sees it.
    registry = grpc.aio.server()
    registration_services.add_RegistrationServicer_to_server(Registration(registration, name, endpoint), registry)
    registry.add_insecure_port(f"unix://{REGISTRY / f'{name}-reg.sock'}")
    await registry.start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    ending = asyncio.create_task(stop.wait())
    while not stop.is_set():
        reading = asyncio.create_task(reader.readline())
        await asyncio.wait({ending, reading}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done() or not (line := reading.result()):
            break
        told = json.loads(line)
        async with driver.changed:
            driver.allocations[told["uid"]] = told["devices"]
            driver.changed.notify_all()
    await registry.stop(None)
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
