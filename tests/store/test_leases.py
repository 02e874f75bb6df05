"""Whether the holder of a lease has died, as far as this machine can tell for certain. Leases in a place: test_objects.py."""

from __future__ import annotations

import os
import socket

import pytest

from kybernate.store.leases import _has_died, _start_time, _this_process

pytestmark = pytest.mark.unit

GONE = (1 << 22) + 1
"""A pid that no process has: above the kernel's limit."""


def ours(**changes: object) -> dict[str, object]:
    """A record of this very process, but for that."""
    return {**_this_process(), **changes}


def test_who_we_are_is_known_by_more_than_a_pid() -> None:
    own = _this_process()
    assert (own["pid"], own["host"]) == (os.getpid(), socket.gethostname())
    assert own["boot"], "pids begin anew with each boot"
    assert str(own["processes"]).startswith("pid:["), "and in each container"
    assert own["started"] == _start_time(os.getpid()) != 0, "and are given again"


def test_we_live() -> None:
    assert not _has_died(ours())


def test_a_process_that_is_gone_has_died() -> None:
    assert _start_time(GONE) == 0
    assert _has_died(ours(pid=GONE))


def test_another_process_with_the_same_number_is_not_the_one_that_held_it() -> None:
    assert _has_died(ours(started=_start_time(os.getpid()) + 1))


@pytest.mark.parametrize("field", ["boot", "processes"])
def test_of_another_machine_or_container_nobody_here_can_tell(field: str) -> None:
    """Its lease is taken for alive until it is stale."""
    assert not _has_died(ours(pid=GONE) | {field: "another"})


@pytest.mark.parametrize("change", [{"pid": "1"}, {"pid": None}, {"started": None}, {"started": "0"}, {"pid": [1]}])
def test_a_record_that_makes_no_sense_is_no_proof(change: dict[str, object]) -> None:
    assert not _has_died(ours() | change)


def test_an_empty_record_is_no_proof() -> None:
    assert not _has_died({})
