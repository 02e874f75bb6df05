"""snapshot, snapshots, clone, prefetch, move, rm-snapshot, verify, gc: what lies below RAM."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from cyclopts import Parameter

from kybernate.cli.common import Common, Seconds, print_json, say, say_notes, table, working
from kybernate.cli.names import alive, below_ram, paused, paused_or_stored, workloads
from kybernate.cli.names import snapshots as stored
from kybernate.cli.several import chosen, order
from kybernate.model.api import READY_S_DEFAULT, OperationView, SnapshotRequest, StoredView
from kybernate.model.errors import BadInput
from kybernate.model.quantities import format_seconds, format_size
from kybernate.model.types import TierName

_COMMON = Common()
Below = Literal["nvme", "object"]
Connections = Literal["refuse", "close"]


def snapshot(
    name: Annotated[str, Parameter(completer=workloads(alive))],
    /,
    *,
    as_: Annotated[str, Parameter(name="--as")],
    tier: Below = "nvme",
    ready: str | None = None,
    ready_command: str | None = None,
    ready_timeout: Seconds = READY_S_DEFAULT,
    connections: Connections | None = None,
    allow_changes: bool | None = None,
    common: Common = _COMMON,
) -> None:
    """Take an image of a running workload, from which `clone` starts replicas. The workload stands still meanwhile, then runs on.

    Args:
        as_: Name of the image.
        tier: Where to store the image: nvme (the disk) or object (the bucket).
        ready: First wait until PORT/PATH (or http://HOST:PORT/PATH) answers 2xx inside the workload's network.
        ready_command: First wait until this command ends with status 0; it runs beside the workload's processes, as its user.
        ready_timeout: How long to wait for `--ready`: seconds, or with units, as in 10m.
        connections: TCP connections to the outside: refuse the snapshot, or close them. Default: agent.store.connections.
        allow_changes: Also if a clone may notice a change, as of its NUMA policy. Default: agent.store.allow_changes.
    """
    try:
        words = shlex.split(ready_command or "")
    except ValueError as e:
        raise BadInput(f"--ready-command: {e}", hint="mind the quotes") from e
    request = SnapshotRequest.of(
        image=as_,
        tier=TierName(tier),
        ready=ready,
        ready_command=words,
        ready_timeout_s=ready_timeout,
        connections=connections,
        allow_changes=allow_changes,
    )
    with (
        common.client() as client,
        working(f"taking image {as_} of {name}", quiet=common.json, look=job_of(common, name)),
    ):
        view = client.snapshot(name, request)
    if common.json:
        print_json(view)
        return
    print(f"{name}: image {as_} in {view.tier}, {_amounts(view)}{_note(view)}")
    say_notes(name, view.notes)


def snapshots(*, common: Common = _COMMON) -> None:
    """List what is stored on disk and in the bucket: images to clone, and paused workloads that lie below RAM."""
    with common.client() as client, working("asking the tiers", quiet=common.json):
        found = client.snapshots()
    if common.json:
        print_json(found)
        return
    rows = [
        (
            view.name,
            view.kind,
            view.workload,
            ", ".join(view.tiers),
            format_size(view.size_bytes),
            format_seconds(max(0.0, time.time() - view.created)),
        )
        for view in found.snapshots
    ]
    table(("SNAPSHOT", "KIND", "WORKLOAD", "TIER", "SIZE", "AGE"), rows)
    for problem in found.problems:
        say(f"kybernate: {problem}")


def clone(
    image: Annotated[str, Parameter(completer=stored)],
    new: str,
    /,
    *,
    count: Annotated[int | None, Parameter(name=("--count", "-n"))] = None,
    timeout: Seconds = 30.0,
    common: Common = _COMMON,
) -> int:
    """Start one workload or several from an image. Exit status 1 if one of them could not be started.

    Args:
        count: Number of workloads; they are named NEW-1 to NEW-K. Without it: one, named NEW.
        timeout: How long the first one waits for VRAM, in seconds or as in 10m. The others stay paused until there is room.
    """
    names = [new] if count is None else [f"{new}-{number + 1}" for number in range(count)]
    with common.client() as client, working(f"cloning {image}", quiet=common.json, look=job_of(common, *names)):
        made = client.clone(image, new, count=count, timeout_s=timeout)
    if common.json:
        print_json(made)
    else:
        for each in made.clones:
            note = f"; {each.note}" if each.note else ""
            print(f"{each.workload}: {each.state} after {each.seconds:.2f} s{note}")
    return 1 if any(each.state in ("exited", "lost") for each in made.clones) else 0


def prefetch(
    *names: Annotated[str, Parameter(completer=workloads(below_ram))],
    all_: Annotated[bool, Parameter(name="--all", negative=())] = False,
    common: Common = _COMMON,
) -> int:
    """Read workloads from disk or bucket into RAM; a resume then takes about a second. They stay paused.

    Args:
        all_: All workloads below RAM, as far as there is room.
    """
    return order(
        chosen(names, all_=all_, meant=below_ram, common=common),
        lambda client, name: client.prefetch(name),
        lambda view: print(f"{view.subject}: {_read(view)}"),
        doing="prefetching",
        common=common,
        listed=all_,
        look=lambda name: job_of(common, name),
    )


def move(
    *names: Annotated[str, Parameter(completer=paused_or_stored)],
    all_: Annotated[bool, Parameter(name="--all", negative=())] = False,
    tier: TierName,
    keep: Annotated[bool, Parameter(negative=())] = False,
    connections: Connections | None = None,
    allow_changes: bool | None = None,
    common: Common = _COMMON,
) -> int:
    """Move paused workloads or images to another tier: nvme (the disk), object (the bucket) or ram.

    Args:
        names: Workloads or images.
        all_: All paused workloads that lie in another tier.
        tier: The new tier; ram is the same as `prefetch`.
        keep: Keep the old copy, too. A resume uses a copy that is intact.
        connections: TCP connections to the outside: refuse the move, or close them. Default: agent.store.connections.
        allow_changes: Also if the program may notice a change later, as of its NUMA policy. Default: agent.store.allow_changes.
    """
    return order(
        chosen(names, all_=all_, meant=lambda each: paused(each) and each.tier != tier, common=common),
        lambda client, name: client.move(name, tier, connections=connections, allow_changes=allow_changes, keep=keep),
        lambda view: _tell_moved(view, tier),
        doing="moving",
        common=common,
        listed=all_,
        look=lambda name: job_of(common, name),
    )


def _tell_moved(view: StoredView, tier: TierName) -> None:
    print(f"{view.subject}: {_moved(view, tier)}")
    say_notes(view.subject, view.notes)


def _moved(view: StoredView, tier: TierName) -> str:
    if tier is TierName.RAM:
        return _read(view)
    if view.already:
        return view.note or f"lies in {tier} already"
    return f"lies in {tier}, {_amounts(view)}"


def rm_snapshot(
    name: Annotated[str, Parameter(completer=stored)], /, *, tier: Below | None = None, common: Common = _COMMON
) -> None:
    """Delete an image, or the stored state of a workload. The next `gc` frees its space.

    Args:
        tier: Delete the copy in this tier only.
    """
    with common.client() as client:
        view = client.remove_snapshot(name, tier=None if tier is None else TierName(tier))
    _print(view, common, f"{name}: removed")


def verify(
    *names: Annotated[str, Parameter(completer=paused_or_stored)],
    tier: Below | None = None,
    quick: Annotated[bool, Parameter(negative=())] = False,
    common: Common = _COMMON,
) -> int:
    """Read stored data and compare it with its hashes. Exit status 1 if something is damaged. Nothing is changed.

    Args:
        names: Snapshots, or workloads below RAM. Default: everything.
        tier: Check this tier only.
        quick: Check only that everything exists; read no content.
    """
    wanted = None if tier is None else TierName(tier)
    look = job_of(common, *([tier] if tier else TierName))
    with common.client() as client, working("verifying", quiet=common.json, look=look):
        found = client.verify(*names, tier=wanted, content=not quick)
    if common.json:
        print_json(found)
    for view in () if common.json else found:
        print(
            f"{view.tier}: {view.snapshots} snapshots, {view.chunks} chunks in {view.packs} packs, "
            f"{format_size(view.bytes_read)} read: {'sound' if not view.problems else f'{len(view.problems)} PROBLEMS'}"
        )
        for problem in view.problems:
            suffer = f" (can't be restored: {', '.join(problem.snapshots)})" if problem.snapshots else ""
            print(f"  {problem.text}{suffer}")
    if not found and not common.json:
        print("nothing is stored")
    return 1 if any(view.problems for view in found) else 0


def gc(
    *,
    tier: Below | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    accept_loss: Annotated[bool, Parameter(negative=())] = False,
    common: Common = _COMMON,
) -> None:
    """Garbage collection: free the space on disk and in the bucket that no snapshot needs any more.

    Args:
        tier: Free space in this tier only.
        dry_run: Say what would be freed; change nothing.
        accept_loss: Treat a tier whose snapshots have all disappeared as empty, instead of refusing to use it.
    """
    wanted = None if tier is None else TierName(tier)
    look = job_of(common, *([tier] if tier else TierName))
    with common.client() as client, working("collecting garbage", quiet=common.json, look=look):
        found = client.collect(tier=wanted, dry_run=dry_run, accept_loss=accept_loss)
    if common.json:
        print_json(found)
        return
    for view in found:
        would = "would be " if dry_run else ""
        print(
            f"{view.tier}: {format_size(view.bytes_freed)} {would}freed, {view.removed} of {view.packs} packs {would}removed, "
            f"{view.compacted} {would}rewritten"
        )
        for line in view.left:
            print(f"  {line}")
    if not found:
        print("nothing is stored")


def job_of(common: Common, *subjects: str) -> Callable[[], OperationView | None]:
    """Asks how far the store's steps about these are, all together, by a connection of its own."""

    def look() -> OperationView | None:
        with common.client() as client:
            return together([job for job in client.jobs() if job.subject in subjects])

    return look


def together(jobs: Sequence[OperationView]) -> OperationView | None:
    """Several steps as one: those that don't know their bytes yet are left out."""
    known = [job for job in jobs if job.bytes_total]
    if len(known) < 2:
        return next(iter(known or jobs), None)
    done, total = (sum(getattr(job, what) or 0 for job in known) for what in ("bytes_done", "bytes_total"))
    rate = sum(job.bytes_per_s or 0.0 for job in known)
    left = max(0, total - done) / rate if rate else None
    return known[0].model_copy(
        update={"bytes_done": done, "bytes_total": total, "bytes_per_s": rate, "seconds_left": left}
    )


def _amounts(view: StoredView) -> str:
    text = f"{format_size(view.bytes_total)} in {view.seconds:.2f} s"
    return text + (
        f", {format_size(view.bytes_stored)} written" if view.operation != "move" or view.bytes_stored else ""
    )


def _read(view: StoredView) -> str:
    if view.already:
        return view.note or "is in RAM already"
    return f"{format_size(view.bytes_total)} read into host memory in {view.seconds:.2f} s"


def _note(view: StoredView) -> str:
    return f"; {view.note}" if view.note else ""


def _print(view: StoredView, common: Common, text: str) -> None:
    print_json(view) if common.json else print(text)
