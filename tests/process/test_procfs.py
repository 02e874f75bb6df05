"""What /proc says of processes, read of this very one and of none."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from kybernate.process import procfs
from kybernate.process.procfs import PF_EXITING, Stat

pytestmark = pytest.mark.unit

GONE = (1 << 22) + 1
"""Linux never hands out such a pid."""


def of(state: str = "S", flags: int = 0) -> Stat:
    return Stat(name="x", state=state, parent=1, group=1, session=1, start_time=1, flags=flags)


def test_this_process_is_what_the_system_says() -> None:
    found = procfs.stat(os.getpid())
    assert found is not None
    assert (found.parent, found.group, found.session) == (os.getppid(), os.getpgid(0), os.getsid(0))
    assert found.alive
    assert not found.ending
    assert found.start_time > 0


def test_a_name_with_parentheses_and_blanks_is_read_to_its_last_one() -> None:
    names = []

    def look() -> None:
        number = threading.get_native_id()
        with open(f"/proc/self/task/{number}/comm", "w") as file:  # noqa: PTH123
            file.write("a) S 1 (b")
        found = procfs.stat(number)
        names.append(None if found is None else (found.name, found.group))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert names == [("a) S 1 (b", os.getpgid(0))]


def test_of_a_process_that_is_not_there_there_is_nothing() -> None:
    assert procfs.stat(GONE) is None
    assert procfs.namespace_pids(GONE) == ()
    assert procfs.command(GONE) == ""
    assert not procfs.catches(GONE, signal.SIGTERM)


@pytest.mark.parametrize(
    ("found", "alive", "ending"),
    [
        pytest.param(of("R"), True, False, id="running"),
        pytest.param(of("T"), True, False, id="stopped"),
        pytest.param(of("Z"), False, True, id="a zombie"),
        pytest.param(of("X"), False, True, id="dead"),
        pytest.param(of("D", flags=PF_EXITING), True, True, id="past the point from which it will end"),
        pytest.param(of("R", flags=~PF_EXITING & 0xFFFF), True, False, id="every other flag"),
    ],
)
def test_who_lives_and_who_is_about_to_end(found: Stat, *, alive: bool, ending: bool) -> None:
    assert (found.alive, found.ending) == (alive, ending)


def test_the_innermost_pid_is_the_processes_own() -> None:
    assert procfs.namespace_pids(os.getpid())[0] == os.getpid()


def test_a_handler_is_seen_and_an_ignored_signal_is_no_handler() -> None:
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        assert procfs.catches(os.getpid(), signal.SIGUSR2)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        assert not procfs.catches(os.getpid(), signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_command_is_short_and_one_line_and_a_kernel_thread_has_its_name() -> None:
    assert 0 < len(procfs.command(os.getpid())) <= 200
    assert "\0" not in procfs.command(os.getpid())


def test_all_processes_are_listed_in_order_and_this_one_is_among_them() -> None:
    found = procfs.all_pids()
    assert found == sorted(found)
    assert os.getpid() in found


def test_a_boot_has_one_name() -> None:
    assert procfs.boot_id() == procfs.boot_id()
    assert len(procfs.boot_id()) == 36
