"""doctor, check, version, completion: about this machine and this installation."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

import kybernate
from kybernate.cli.common import Common, print_json
from kybernate.model.errors import AgentAway, BadInput, KybernateError

if TYPE_CHECKING:
    from kybernate.model.api import NodeView

_COMMON = Common()


def doctor(*, common: Common = _COMMON) -> int:
    """Check this machine: what works, what is missing, how to get it. Exit status 1 if something needed is missing."""
    from kybernate.doctor.doctor import beside_simulated, checks, of_agent

    node, advice = _node(common)
    own = checks()
    if node is not None and node.simulated:
        own = beside_simulated(own)
    found = [*own, *([] if node is None else of_agent(node, advice, now=time.time()))]
    healthy = all(check.ok for check in found if check.needed)
    if common.json:
        print_json({"healthy": healthy, "checks": [asdict(check) for check in found]})
        return 0 if healthy else 1
    width = max(len(check.name) for check in found)
    for check in found:
        mark = "ok" if check.ok else ("MISSING" if check.needed else "absent")
        print(f"{mark:8}{check.name:{width}}  {check.detail}")
        if check.remedy:
            print(f"{'':8}{'':{width}}  -> {check.remedy}")
    return 0 if healthy else 1


def _node(common: Common) -> tuple[NodeView | None, list[str]]:
    """What the agent says, where one answers; and what in its file is most likely not meant so."""
    try:
        with common.client() as client:
            return client.node(ask=True), client.serving().advice
    except KybernateError:
        return None, []


def check(
    file: Path | None = None,
    /,
    *,
    schema: Annotated[bool, Parameter(negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    vram: str | None = None,
    common: Common = _COMMON,
) -> None:
    """Check a kybernate.yaml: print its errors, or its meaning and warnings.

    Args:
        schema: Print the JSON schema for editors; takes no file.
        dry_run: Say which workloads would be paused, and why, if each model got one request, one after the other.
        vram: VRAM of each GPU in the dry run. Default: agent.vram.limit, or that of the running agent.
    """
    from kybernate import settings

    if schema:
        print_json(settings.schema())
        return
    if file is None:
        raise BadInput("which file?", hint="kybernate check kybernate.yaml")
    found = settings.load(file)
    if dry_run:
        from kybernate.cli.rehearsal import rehearsal

        rehearsal(found, vram=vram, common=common)
        return
    if common.json:
        print_json(found)
        return
    from kybernate.cli.checking import tell

    tell(file, found, common)


def version(*, common: Common = _COMMON) -> None:
    """Show the versions of the command line and of the agent."""
    agent: str | None = None
    try:
        with common.client() as client:
            agent = client.node().version
    except AgentAway:
        pass
    if common.json:
        print_json({"command_line": kybernate.__version__, "agent": agent})
    else:
        print(f"kybernate {kybernate.__version__}, agent {agent or 'not running'}")


def completion(shell: Literal["bash", "zsh", "fish"] = "bash", /, *, common: Common = _COMMON) -> None:
    """Print the completion script for a shell, for example `kybernate completion bash >> ~/.bash_completion`."""
    from kybernate.cli.main import application

    script = application().generate_completion(prog_name="kybernate", shell=shell)
    print_json({"shell": shell, "script": script}) if common.json else print(script)
