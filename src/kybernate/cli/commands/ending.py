"""stop and rm."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from kybernate.cli.common import Common, Seconds, print_json, working

_COMMON = Common()


def stop(
    name: str,
    /,
    *,
    grace: Seconds = 10.0,
    remove: Annotated[bool, Parameter(negative=())] = False,
    common: Common = _COMMON,
) -> None:
    """End a workload: SIGTERM, and SIGKILL when the grace is over.

    One that is paused and has a handler for SIGTERM is resumed first, so that it can save what it wants to. Where its VRAM
    isn't free nobody is paused for that: it gets two seconds for what needs no GPU, and is killed then. With --grace 0 it is
    ended where it stands.

    Args:
        grace: Time between SIGTERM and SIGKILL: seconds, or with units, as in 2m.
        remove: Forget it afterwards, its output too.
    """
    with common.client() as client, working(f"stopping {name}", quiet=common.json):
        view = client.stop(name, grace_s=grace, remove=remove)
    if common.json:
        print_json(view)
    else:
        status = "" if view.exit_status is None else f", exit status {view.exit_status}"
        print(f"{name}: {'removed' if view.removed else 'stopped'}{status}")
        if view.note is not None:
            print(f"{name}: {view.note}")


def rm(name: str, /, *, common: Common = _COMMON) -> None:
    """Forget an ended workload and its output."""
    with common.client() as client:
        view = client.remove(name)
    if common.json:
        print_json(view)
    else:
        print(f"{name}: removed")
