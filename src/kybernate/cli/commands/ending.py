"""stop and rm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from kybernate.cli.common import Common, Seconds
from kybernate.cli.names import alive, ended, workloads
from kybernate.cli.several import chosen, order

if TYPE_CHECKING:
    from kybernate.model.api import StoppedView

_COMMON = Common()


def stop(
    *names: Annotated[str, Parameter(completer=workloads(alive))],
    all_: Annotated[bool, Parameter(name="--all", negative=())] = False,
    grace: Seconds = 10.0,
    remove: Annotated[bool, Parameter(negative=())] = False,
    common: Common = _COMMON,
) -> int:
    """End workloads: SIGTERM, and SIGKILL when the grace is over.

    A paused workload with a handler for SIGTERM is resumed first, so that it can save its work. If its VRAM is not free, no
    other workload is paused for that: it gets two seconds without a GPU, then it is killed. --grace 0 kills it at once.
    A workload whose state is in nvme or object has no processes: it stays there, and only `resume` brings it back.

    Args:
        all_: All running and paused workloads, at the same time.
        grace: Time between SIGTERM and SIGKILL: seconds, or with units, as in 2m.
        remove: Then remove it from the list, and delete its output and its stored state.
    """
    return order(
        chosen(names, all_=all_, meant=alive, common=common),
        lambda client, name: client.stop(name, grace_s=grace, remove=remove),
        _tell,
        doing="stopping",
        common=common,
        listed=all_,
        at_once=True,
    )


def _tell(view: StoppedView) -> None:
    status = "" if view.exit_status is None else f", exit status {view.exit_status}"
    done = "removed" if view.removed else "stopped" if view.stays is None else f"lies in {view.stays} and stays there"
    print(f"{view.workload}: {done}{status}")
    if view.note is not None:
        print(f"{view.workload}: {view.note}")


def rm(
    *names: Annotated[str, Parameter(completer=workloads(ended))],
    all_: Annotated[bool, Parameter(name="--all", negative=())] = False,
    common: Common = _COMMON,
) -> int:
    """Remove ended workloads from the list, and delete their output.

    Args:
        all_: All ended workloads.
    """
    return order(
        chosen(names, all_=all_, meant=ended, common=common),
        lambda client, name: client.remove(name),
        lambda view: print(f"{view.workload}: removed"),
        doing="removing",
        common=common,
        listed=all_,
    )
