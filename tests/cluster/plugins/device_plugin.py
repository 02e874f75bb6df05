"""A device plugin: `python -m tests.cluster.plugins.device_plugin RESOURCE COUNT`, run on a node as root.

Offers COUNT devices; a container that gets one finds SLOT=slot-N in its environment and /dev/slot, which is /dev/null. It
registers again when the kubelet was started again, and reports a device as unhealthy while a file NAME.sick lies in its directory.
Says one JSON object a line what happens.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from tests.cluster.plugins.interfaces import load

DIRECTORY = Path("/var/lib/kubelet/device-plugins")
KUBELET = DIRECTORY / "kubelet.sock"
TICK_S = 0.1


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


class Plugin:
    """The service a kubelet calls."""

    def __init__(self, messages: Any, names: list[str]) -> None:
        self._messages = messages
        self._names = names

    async def GetDevicePluginOptions(self, _request: Any, _context: Any) -> Any:  # noqa: N802 - gRPC's name
        return self._messages.DevicePluginOptions()

    async def ListAndWatch(self, _request: Any, _context: Any) -> AsyncIterator[Any]:  # noqa: N802
        told = None
        while True:
            devices = {name: self._health(name) for name in self._names}
            if devices != told:
                told = devices
                say(event="list", devices=devices)
                yield self._messages.ListAndWatchResponse(
                    devices=[self._messages.Device(ID=name, health=health) for name, health in devices.items()]
                )
            await asyncio.sleep(TICK_S)

    async def Allocate(self, request: Any, _context: Any) -> Any:  # noqa: N802
        answers = []
        for container in request.container_requests:
            names = list(container.devices_ids)
            say(event="allocate", devices=names)
            device = self._messages.DeviceSpec(container_path="/dev/slot", host_path="/dev/null", permissions="rw")
            answers.append(self._messages.ContainerAllocateResponse(envs={"SLOT": ",".join(names)}, devices=[device]))
        return self._messages.AllocateResponse(container_responses=answers)

    async def GetPreferredAllocation(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """Not called: our options don't offer it. The same goes for the next."""
        return self._messages.PreferredAllocationResponse()

    async def PreStartContainer(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        return self._messages.PreStartContainerResponse()

    @staticmethod
    def _health(name: str) -> str:
        return "Unhealthy" if (DIRECTORY / f"{name}.sick").exists() else "Healthy"


async def serve(resource: str, count: int) -> None:
    """Serve until SIGTERM."""
    with tempfile.TemporaryDirectory() as generated:
        messages, services = load("deviceplugin", Path(generated))
    server = grpc.aio.server()
    services.add_DevicePluginServicer_to_server(Plugin(messages, [f"slot-{n}" for n in range(count)]), server)
    endpoint = f"{resource.replace('/', '-')}.sock"
    server.add_insecure_port(f"unix://{DIRECTORY / endpoint}")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    known: int | None = None
    while not stop.is_set():
        # A kubelet that starts removes all sockets here and makes its own anew. The inode's number may be the old one.
        now = KUBELET.stat().st_ctime_ns if KUBELET.exists() else None
        if now is not None and now != known:
            if not (DIRECTORY / endpoint).exists():
                say(event="restart", why="the kubelet removed our socket")
                os.execv(
                    sys.executable, [sys.executable, "-m", "tests.cluster.plugins.device_plugin", resource, str(count)]
                )
            request = messages.RegisterRequest(version="v1beta1", endpoint=endpoint, resource_name=resource)
            try:
                async with grpc.aio.insecure_channel(f"unix://{KUBELET}") as channel:
                    await services.RegistrationStub(channel).Register(request, timeout=5)
            except grpc.aio.AioRpcError as e:  # its socket is there a moment before it listens
                say(event="refused", why=e.details())
            else:
                known = now
                say(event="registered", resource=resource)
        await asyncio.sleep(TICK_S)
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
