"""up and down: the agent's own life."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from kybernate.cli.agent_log import configure
from kybernate.cli.common import Common, print_json, say, working
from kybernate.cli.simulated import MADE_VARIABLE, remove_simulated, simulated_environment, taken_away_on_failure
from kybernate.model import isolation
from kybernate.model.errors import AgentAway, BadInput, Busy, KybernateError
from kybernate.model.layout import STATE_VARIABLE, StateDirectory
from kybernate.model.quantities import format_size, parse_size
from kybernate.model.types import LogFormat

if TYPE_CHECKING:
    from kybernate.client import Client
    from kybernate.model.api import NodeView
    from kybernate.settings import AgentSettings, Settings

_COMMON = Common()
_START_S = 120.0
"""Opening many GPUs and compiling a kernel takes seconds; recovering many workloads some more."""
_POLL_S = 0.1
_LOG_LINES = 5
_DOING = {False: "waiting for the agent's end", True: "stopping all workloads, then the agent"}


@Parameter(name="*")
@dataclass(frozen=True)
class UpOptions:
    """What the agent's process is started with. A field here is all that a new option needs, besides what it does."""

    file: Annotated[
        Path | None,
        Parameter(name=("--file", "-f"), help="kybernate.yaml. Default: settings that fit the machine."),
    ] = None
    simulated: Annotated[
        str | None,
        Parameter(
            help="Use a simulated GPU of this size (default 8GiB). It proves logic on a machine without a GPU, never a speed."
        ),
    ] = None
    pool: Annotated[str | None, Parameter(help="Size of the host pool, such as 40GiB. Overrides the file.")] = None
    listen: Annotated[
        str | None, Parameter(help="HOST:PORT of the API and the dashboard over TCP. Overrides the file.")
    ] = None
    log_format: Annotated[
        LogFormat | None, Parameter(help="text for people, json for machines. Overrides the file.")
    ] = None

    @property
    def words(self) -> list[str]:
        """The same for another process, which may have another working directory."""
        words = []
        for option in fields(self):
            value = getattr(self, option.name)
            if value is not None:
                text = str(value.absolute()) if isinstance(value, Path) else str(value)
                words.append(f"--{option.name.replace('_', '-')}={text}")
        return words


_OPTIONS = UpOptions()


def up(
    *,
    detach: Annotated[bool, Parameter(negative=())] = False,
    options: UpOptions = _OPTIONS,
    common: Common = _COMMON,
) -> None:
    """Start the agent of this node, in the foreground or with --detach.

    Args:
        detach: Return when every address answers. Output goes to agent.log in the state directory.
    """
    made = os.environ.pop(MADE_VARIABLE, None) is not None
    whole, settings = _settings(options, common)
    state = StateDirectory(settings.state_dir.absolute()) if settings.state_dir else common.state
    command = [*isolation.python("kybernate.cli"), "up", *options.words]
    if common.state_dir is not None:
        command += ["--state-dir", str(common.state_dir.absolute())]
    if options.simulated is not None:
        environment = simulated_environment(state, parse_size(options.simulated), os.environ)
        if environment != dict(os.environ):
            # The loader reads LD_LIBRARY_PATH at the start of a process only.
            _restart(environment, command, detach=detach, common=common)
    with taken_away_on_failure(state) if made else contextlib.nullcontext():
        if detach:
            _detach(command, state=state, options=options, common=common)
            return
        from kybernate.agent.agent import serve
        from kybernate.ui.pages import pages

        serve(
            settings,
            whole=whole,
            file=None if options.file is None else options.file.absolute(),
            say=configure(options.log_format or settings.log.format),
            pages=pages(),
        )


def down(
    *,
    stop: Annotated[bool, Parameter(negative=())] = False,
    common: Common = _COMMON,
) -> None:
    """End the agent. Workloads run on and paused ones stay paused; the next agent takes them over.

    Args:
        stop: First stop all workloads, at the same time. Stored ones stay. If one cannot be stopped, the agent stays up.
    """
    with common.client() as client, working(_DOING[stop], quiet=common.json):
        node = client.shutdown(stop=stop)
        _wait_gone(node.pid)
    from kybernate.agent.records.lifecycle import ALIVE

    state = StateDirectory(Path(node.state_directory))
    if stop:
        _refuse_remains(state)
    if node.simulated and not any(node.workloads.get(each) for each in ALIVE):
        remove_simulated(state)
    if common.json:
        print_json(node)
    else:
        print(f"agent {node.pid} is down" + (", no process of a workload is left" if stop else ""))


def _refuse_remains(state: StateDirectory) -> None:
    """The agent has looked; this looks once more, now that it is gone. Raises Busy."""
    from kybernate.agent.workloads.stopping import list_left
    from kybernate.process.remains import remains

    if left := remains(state.workloads):
        raise Busy(
            f"the agent is down, and processes of workloads live on: {list_left(left, {})}",
            hint="`kybernate up` takes them over; or end them by hand",
        )


def _settings(options: UpOptions, common: Common) -> tuple[Settings, AgentSettings]:
    """What the file says, and the agent's part of it with what the command line says over it."""
    from kybernate.settings import ApiSettings, PoolSettings, Settings, load

    whole = load(options.file) if options.file is not None else Settings()
    settings = whole.agent
    if (pool := options.pool) is not None:
        size = parse_size(pool)
        try:
            settings = settings.model_copy(update={"pool": PoolSettings(size=size)})
        except ValueError as e:
            raise BadInput(f"a host pool of {size} bytes makes no sense", hint="give 64MiB or more") from e
    if (listen := options.listen) is not None:
        try:
            api = ApiSettings.model_validate({**settings.api.model_dump(exclude_unset=True), "listen": listen})
        except ValueError as e:
            raise BadInput(f"can't listen on {listen[:80]!r}", hint="give HOST:PORT, such as 127.0.0.1:7070") from e
        settings = settings.model_copy(update={"api": api})
    if common.state_dir is not None or (settings.state_dir is None and STATE_VARIABLE in os.environ):
        settings = settings.model_copy(update={"state_dir": common.state.root})
    return whole, settings


def _restart(environment: dict[str, str], command: Sequence[str], *, detach: bool, common: Common) -> None:
    more = [*(["--detach"] if detach else []), *(["--json"] if common.json else [])]
    os.execve(command[0], [*command, *more], isolation.environment(environment))


def _detach(command: Sequence[str], *, state: StateDirectory, options: UpOptions, common: Common) -> None:
    try:
        state.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        log = os.open(state.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise BadInput(
            f"can't write to {state.root}: {e.strerror}", hint="give another directory with --state-dir"
        ) from e
    try:
        begin = os.fstat(log).st_size
        agent = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/" if options.file is None or options.file.is_absolute() else None,
            env=isolation.environment(os.environ),
        )
    finally:
        os.close(log)
    from kybernate.client import Client

    with Client(state.socket) as client:
        with working("starting the agent", quiet=common.json):
            _wait_ready(client, agent, state, begin)
        node = _wait_pool(client, quiet=common.json)
        serving = client.serving()
        models_on = serving.listen
    if common.json:
        print_json(node)
        return
    gpus = ", ".join(f"{g.name}{' (simulated)' if g.simulated else ''}" for g in node.gpus) or "no GPU"
    pool_text = "" if node.pool is None else f", host pool of {format_size(node.pool.size_bytes)}"
    wanted = None if options.pool is None else parse_size(options.pool)
    if wanted is not None and node.pool is not None and node.pool.size_bytes > wanted:
        say(
            f"kybernate: the host pool keeps {format_size(node.pool.size_bytes)}: an earlier agent's content lies in it"
        )
    print(f"agent {node.pid} is up on {state.socket}: {gpus}{pool_text}")
    if node.url is not None:
        print(f"dashboard on {node.url}: `kybernate dashboard` prints the address with its token")
    if models_on is not None:
        print(f"models on {models_on}: `kybernate models` shows them")
    for note in [
        *node.notes,
        *(f"tier {tier.tier} can't be used: {tier.problem}" for tier in node.tiers if tier.problem),
        *(f"look at {line}" for line in serving.advice),
    ]:
        say(f"kybernate: {note}")


def _wait_ready(client: Client, agent: subprocess.Popen[bytes], state: StateDirectory, begin: int) -> None:
    """Until every address answers. Raises KybernateError with its last words when it ended instead."""
    deadline = time.monotonic() + _START_S
    answers = False
    while True:
        try:
            node = client.node()
            answers = node.pid == agent.pid
            if answers and node.ready:
                return
        except AgentAway:
            pass
        if (status := agent.poll()) is not None:
            words = [line.removeprefix("kybernate: ") for line in _tail(state.log, begin)]
            message = words[-1] if words else f"the agent ended with status {status}"
            error = KybernateError(message, hint=f"see {state.log}")
            raise error.reported_as(exit_status=status if status > 0 else 1)
        if time.monotonic() > deadline:
            if answers:
                raise KybernateError(
                    f"the agent is up, but its models' address did not answer within {_START_S:g} s",
                    hint=f"{state.root}/activator.log says why; `kybernate doctor`",
                )
            raise KybernateError(f"the agent did not answer within {_START_S:g} s", hint=f"see {state.log}")
        time.sleep(_POLL_S)


def _wait_pool(client: Client, *, quiet: bool) -> NodeView:
    """Until the host pool is made, with a bar where somebody watches."""
    node = client.node()
    made = node.pool
    if made is None:
        return node
    total = made.size_bytes
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("making the host pool"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    shown = not quiet and sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as progress:
        task = progress.add_task("pool", total=total)
        while made is not None and made.ready_bytes < made.size_bytes:
            progress.update(task, completed=made.ready_bytes)
            time.sleep(_POLL_S)
            node = client.node()
            made = node.pool
    return node


def _wait_gone(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        import select

        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(_START_S * 1000):
            raise KybernateError(
                f"agent {pid} is still there after {_START_S:g} s",
                hint="an operation under way keeps it; `kybernate ps`",
            )
    finally:
        os.close(pidfd)


def _tail(path: Path, begin: int) -> list[str]:
    with path.open("rb") as file:
        file.seek(begin)
        text = file.read().decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()][-_LOG_LINES:]
