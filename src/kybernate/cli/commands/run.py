"""run: start a workload with the caller's environment, directory and user."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from kybernate.cli.common import Common, print_json, say, working
from kybernate.cli.passing import passed_on
from kybernate.model.errors import BadInput
from kybernate.model.types import Backend, with_private_tmp, workload_name

_COMMON = Common()


def run(
    name: str,
    /,
    *command: str,
    wait: Annotated[bool, Parameter(negative=())] = False,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), negative=())] = False,
    backend: Backend = Backend.BROKER,
    network: Literal["none", "host"] = "none",
    isolated: bool | None = None,
    directory: Path | None = None,
    layer: Annotated[list[Path] | None, Parameter(negative=())] = None,
    private_tmp: Annotated[bool, Parameter(negative=())] = False,
    io_uring: Annotated[bool, Parameter(negative=())] = False,
    cold_start: Annotated[bool, Parameter(negative=())] = False,
    common: Common = _COMMON,
) -> int:
    """Start COMMAND as a workload, with your environment, in this directory, as your user. It outlives the agent.

    Args:
        wait: Wait for its end and return its exit status. SIGTERM, SIGHUP, Ctrl-C ... reach it; a second Ctrl-C leaves it running.
        follow: Like --wait, and print its output.
        backend: broker moves memory at the link's speed; driver uses the driver's own checkpoint for everything.
        network: none: its own network with loopback only. host: the network of the host.
        isolated: Run it in namespaces of its own. Default: yes, if the agent has the rights.
        directory: Working directory. Default: the current one.
        layer: Directory whose changes go into a private layer, which snapshots contain. May be repeated.
        private_tmp: Give it a /tmp of its own: it sees the host's, and what it writes there goes into a layer.
        io_uring: Let it use io_uring. Without, its libraries take epoll; with it, it can't go below RAM while it uses it.
        cold_start: Start it again from the beginning if it is resumed and no copy of its state can be used.
    """
    workload_name(name)
    if not command:
        raise BadInput("no command to run", hint=f"kybernate run {name} -- COMMAND ...")
    from kybernate.model.api import RunRequest

    request = RunRequest.of(
        name=name,
        argv=list(command),
        directory=str((directory or _here()).absolute()),
        environment=dict(os.environ),
        backend=backend,
        network=network,
        isolated=isolated,
        layers=list(with_private_tmp((str(each.absolute()) for each in layer or ()), wanted=private_tmp)),
        io_uring=io_uring,
        cold_start=cold_start,
    )
    with common.client() as client:
        with working(f"starting {name}", quiet=common.json):
            view = client.run(request)
        if not (wait or follow):
            print_json(view) if common.json else print(f"{name}: running, pid {', '.join(map(str, view.pids)) or '-'}")
            return 0
        try:
            with passed_on(name, common):
                if follow:
                    for piece in client.logs(name, follow=True):
                        os.write(1, piece)
                with working(f"{name} runs", quiet=common.json or follow):
                    while view.exit_status is None and view.state not in ("exited", "lost"):
                        view = client.wait(name)
        except KeyboardInterrupt:
            say(f"kybernate: {name} runs on; `kybernate stop {name}` ends it")
            return 130
    if common.json:
        print_json(view)
    return 1 if view.exit_status is None else view.exit_status


def _here() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError as e:
        raise BadInput("the current directory is gone", hint="change to another, or give --directory") from e
