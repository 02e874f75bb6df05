"""Calls that sleep through a freeze, a dump and a restore: they end when they should, and not with EINTR."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Workloads

from kybernate.model.types import WorkloadName
from kybernate.process.dumping import dump
from kybernate.process.restoring import restore
from kybernate.process.sleeping_calls import CALL_AGAIN, EINTR, GO_ON, Call, going_on
from kybernate.process.tree import CONTROL, Tree

from .dumps import output

SLEEP_S = 8
PROGRAM = """
import ctypes, errno, json, os, select, signal, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
control = os.environ["KYBERNATE_RUN_DIRECTORY"] + "/control"
SLEEP_S = int(sys.argv[1])
reader, writer = os.pipe()
silent, _ = os.pipe()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
signal.signal(signal.SIGUSR2, lambda *_: None)
ended = {}

def time_of(seconds):
    return ctypes.create_string_buffer(struct.pack("qq", *divmod(int(seconds * 10**9), 10**9)), 16)

def epoll(timeout_ms):
    poller = select.epoll()
    poller.register(reader if timeout_ms < 0 else silent, select.EPOLLIN)
    return lambda: libc.syscall(232, poller.fileno(), ctypes.create_string_buffer(16), 1, timeout_ms)

def poll(timeout_ms):
    waited_for = struct.pack("ihh", reader if timeout_ms < 0 else silent, 1, 0)
    return lambda: libc.syscall(7, ctypes.create_string_buffer(waited_for, 8), 1, timeout_ms)

calls = {
    "nanosleep": lambda: libc.syscall(35, time_of(SLEEP_S), None),
    "nanosleep-that-asks": lambda: libc.syscall(35, time_of(SLEEP_S), time_of(0)),
    "clock_nanosleep": lambda: libc.syscall(230, 1, 0, time_of(SLEEP_S), time_of(0)),
    "clock_nanosleep-until": lambda: libc.syscall(230, 1, 1, time_of(time.monotonic() + SLEEP_S), None),
    "poll": poll(-1),
    "poll-with-a-timeout": poll(SLEEP_S * 1000),
    "epoll_wait": epoll(-1),
    "epoll_wait-with-a-timeout": epoll(SLEEP_S * 1000),
    "sigtimedwait": lambda: libc.syscall(128, ctypes.create_string_buffer(struct.pack("Q", 1 << 9), 8), None, None, 8),
}

def run(kind):
    began = time.monotonic()
    result = calls[kind]()
    ended[kind] = "EINTR" if result < 0 and ctypes.get_errno() == errno.EINTR else result, time.monotonic() - began

def watch():
    while not os.path.exists(control + "/go"):
        time.sleep(0.01)
    os.write(writer, b"x")
    for thread in threads:
        thread.join(60)
    while leader != "-" and leader not in ended:
        time.sleep(0.01)
    print(json.dumps(ended), flush=True)
    os._exit(0)

leader, *others = sys.argv[2:]
threads = [threading.Thread(target=run, args=(kind,), daemon=True) for kind in others]
for thread in threads:
    thread.start()
if leader == "-":
    print("ready", flush=True)
    watch()
threading.Thread(target=watch, daemon=True).start()
print("ready", flush=True)
run(leader)
print("woken", flush=True)
time.sleep(60)
"""
SLEEPS = ["nanosleep", "nanosleep-that-asks", "clock_nanosleep", "clock_nanosleep-until", "poll-with-a-timeout"]
WAITS = ["poll", "epoll_wait"]
SIGTIMEDWAIT_ANSWER = int(signal.SIGUSR1)


def start(workloads: Workloads, eventually: Eventually, *kinds: str) -> Tree:
    tree = workloads.python(PROGRAM, str(SLEEP_S), *kinds)
    eventually(lambda: "ready" in output(tree))
    main = tree.main_pid()
    assert main is not None
    eventually(lambda: all(_sleeps(task) for task in Path(f"/proc/{main}/task").iterdir()), what="all of them sleep")
    return tree


def _sleeps(task: Path) -> bool:
    return (task / "syscall").read_text().split()[0] != "running"


def interrupt(how: str, tree: Tree, images: Path, workloads: Workloads) -> Tree:
    """As long as a few hundred milliseconds each."""
    match how:
        case "paused in RAM":
            tree.freeze()
            tree.thaw()
        case "imaged":
            dump(tree, images)
        case _:
            dump(tree, images, hold=True)
            tree.remove()
            tree = restore(images, name=WorkloadName("work"), run_directory=tree.run_directory).tree
            workloads.trees.append(tree)
            tree.freeze()  # as the engine does
            tree.thaw()
    return tree


def ends(tree: Tree) -> dict[str, tuple[object, float]]:
    main = tree.main_pid()
    assert main is not None
    os.kill(main, signal.SIGUSR1)
    (tree.run_directory / CONTROL / "go").touch()
    assert tree.wait(60) == 0, output(tree)
    found: dict[str, tuple[object, float]] = json.loads(output(tree).splitlines()[-1])
    return found


@pytest.mark.root
@pytest.mark.parametrize("how", ["paused in RAM", "imaged", "restored"])
def test_threads_sleep_on(how: str, workloads: Workloads, eventually: Eventually, tmp_path: Path) -> None:
    tree = start(workloads, eventually, "-", *SLEEPS, *WAITS, "sigtimedwait", "epoll_wait-with-a-timeout")
    found = ends(interrupt(how, tree, tmp_path / "images", workloads))
    assert {kind: found[kind][0] for kind in SLEEPS} == dict.fromkeys(SLEEPS, 0)
    assert {kind: found[kind][0] for kind in WAITS} == dict.fromkeys(WAITS, 1)
    assert found["sigtimedwait"][0] == SIGTIMEDWAIT_ANSWER
    assert found["epoll_wait-with-a-timeout"][0] == "EINTR", "as Linux's own freezer has it"
    assert all(found[kind][1] > SLEEP_S - 0.1 for kind in SLEEPS), found
    if how != "restored":
        assert all(found[kind][1] < SLEEP_S + 2 for kind in SLEEPS), "where it runs on, sleeps end when they should"


@pytest.mark.root
@pytest.mark.parametrize("how", ["imaged", "restored"])
@pytest.mark.parametrize("kind", ["nanosleep-that-asks", "poll-with-a-timeout", "epoll_wait", "sigtimedwait"])
def test_a_first_thread_sleeps_on(
    how: str, kind: str, workloads: Workloads, eventually: Eventually, tmp_path: Path
) -> None:
    """CRIU runs in its name."""
    tree = start(workloads, eventually, kind)
    tree = interrupt(how, tree, tmp_path / "images", workloads)
    answers = {"epoll_wait": 1, "sigtimedwait": SIGTIMEDWAIT_ANSWER}
    assert ends(tree)[kind][0] == answers.get(kind, 0), "it waits, and gets what comes"


@pytest.mark.root
def test_a_signal_that_came_meanwhile_ends_the_call(
    workloads: Workloads, eventually: Eventually, tmp_path: Path
) -> None:
    """Its handler is what the program waits for: CRIU would let it run and then wait on."""
    tree = start(workloads, eventually, "epoll_wait")
    main = tree.main_pid()
    assert main is not None
    tree.freeze()
    os.kill(main, signal.SIGUSR2)
    tree = interrupt("restored", tree, tmp_path / "images", workloads)
    eventually(lambda: "woken" in output(tree), what="it wakes up")
    assert ends(tree)["epoll_wait"][0] == "EINTR"


def call(number: int, answer: int, *arguments: int) -> Call:
    return Call(answer, number, *(*arguments, 0, 0, 0, 0)[:4])


@pytest.mark.parametrize(
    ("before", "for_dump", "signalled", "after"),
    [
        pytest.param(call(232, EINTR, 3, 4, 1, 0xFFFFFFFF), False, False, CALL_AGAIN, id="epoll_wait"),
        pytest.param(call(232, EINTR, 3, 4, 1, 5000), False, False, None, id="epoll_wait with a timeout"),
        pytest.param(call(232, EINTR, 3, 4, 1, 0xFFFFFFFF), False, True, None, id="a signal has come"),
        pytest.param(call(232, CALL_AGAIN, 3, 4, 1, 0xFFFFFFFF), True, True, EINTR, id="a signal came after a freeze"),
        pytest.param(call(232, CALL_AGAIN, 3, 4, 1, 0xFFFFFFFF), False, True, None, id="the kernel looks for itself"),
        pytest.param(call(441, EINTR, 3, 4, 1, 0), False, False, CALL_AGAIN, id="epoll_pwait2"),
        pytest.param(call(65, EINTR, 3, 4, 1, 7), False, False, CALL_AGAIN, id="semop"),
        pytest.param(call(220, EINTR, 3, 4, 1, 0), False, False, CALL_AGAIN, id="semtimedop"),
        pytest.param(call(220, EINTR, 3, 4, 1, 5), False, False, None, id="semtimedop with a timeout"),
        pytest.param(call(128, EINTR, 3, 4, 5), False, False, None, id="sigtimedwait with a timeout"),
        pytest.param(call(7, GO_ON, 3, 1, 500), False, False, None, id="the kernel goes on by itself"),
        pytest.param(call(7, GO_ON, 3, 1, 500), True, False, CALL_AGAIN, id="poll"),
        pytest.param(call(7, GO_ON, 3, 1, 500), True, True, None, id="poll with a signal"),
        pytest.param(call(202, GO_ON, 3), True, False, None, id="a futex, whose callers look again anyway"),
        pytest.param(call(232, 1, 3, 4, 1, 0xFFFFFFFF), True, False, None, id="it has its answer"),
    ],
)
def test_what_goes_on(before: Call, for_dump: bool, signalled: bool, after: int | None) -> None:
    found = going_on(before, for_dump=for_dump, signalled=signalled)
    assert (None if found is None else found.answer) == after


def test_a_sleep_that_asked_for_the_time_left_sleeps_that_long() -> None:
    slept = going_on(call(35, GO_ON, 0x1000, 0x2000), for_dump=True, signalled=False)
    assert slept is not None
    assert slept.first == 0x2000
    never_asked = going_on(call(35, GO_ON, 0x1000, 0), for_dump=True, signalled=False)
    assert never_asked is not None
    assert never_asked.first == 0x1000
    by_clock = going_on(call(230, GO_ON, 1, 0, 0x1000, 0x2000), for_dump=True, signalled=False)
    assert by_clock is not None
    assert by_clock.third == 0x2000
