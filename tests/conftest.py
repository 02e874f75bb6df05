"""What all tests share: markers that leave out what a machine can't do, and waiting with a deadline.

Tests use real processes, sockets, cgroups and namespaces; only the GPU is simulated. They run side by side
(`pytest -n 2`), so each makes its own directories and names. What is left of a test when it has ended fails it (leftovers.py).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import pytest
from tests import guardian
from tests.leftovers import PATIENCE_S, Leftovers, Thing, make_home

with contextlib.suppress(ImportError):  # the bundle's GPU tests need none
    from hypothesis import settings

    # No test fails for being slow: on a busy machine anything is.
    settings.register_profile("kybernate", deadline=None)
    settings.load_profile("kybernate")

# Else each of the thousands of processes that tests start compiles all it imports: half of what the suite would take.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# What `nohup`, or `&` in a script, had pytest ignore would be ignored by all that tests start: Ctrl-C would end nothing.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

T = TypeVar("T")

SLOWER = 4 if os.environ.get("KYBERNATE_SANITIZER") else 1
"""Deadlines are so many times as long under a sanitizer."""

LEAST_S = 60.0
"""Nobody gives up earlier: on a machine that is busy with other things anything takes its time."""

LEFT_OUT = {
    "root": (lambda: os.geteuid() == 0, "left out: needs root"),
    "gpu": (lambda: Path("/dev/nvidiactl").exists(), "left out: needs a real GPU"),
}
"""Marker, whether this machine can, and the one line said otherwise."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, (possible, reason) in LEFT_OUT.items():
        if not possible():
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=reason))


# -- tests of pure parts -------------------------------------------------------------------------------------------------

WORLD = frozenset(
    {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "socket.connect", "socket.bind", "ctypes.dlopen"}
)
"""Audit events of what a test of a pure part has no use for: other processes, other ends of sockets, native libraries."""
UNIT = pytest.StashKey[list[str]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """`make fast` must not become slow, or need what a machine hasn't got, without anybody noticing."""
    touched = item.config.stash.setdefault(UNIT, [])
    touched.clear()
    yield
    if touched and item.get_closest_marker("unit") is not None:
        pytest.fail(f"marked `unit`, but did: {', '.join(sorted(set(touched)))}", pytrace=False)


# -- nothing is left of a test -------------------------------------------------------------------------------------------

WATCH = pytest.StashKey[Leftovers]()
MADE = pytest.StashKey[dict[object, dict[Thing, str]]]()
"""By fixtures of a wider scope than one test that are alive: what they have made."""


OPEN = pytest.StashKey[contextlib.ExitStack]()
"""Ends after the last fixture."""


@pytest.fixture(scope="session", autouse=True)
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where temporary directories of this test process lie. It goes at the end, even if the process is killed."""
    base = tmp_path_factory.getbasetemp()  # before TMPDIR changes
    made = make_home()
    stash = request.config.stash
    stash[OPEN] = contextlib.ExitStack()
    patch = stash[OPEN].enter_context(pytest.MonkeyPatch.context())
    patch.setenv("TMPDIR", str(made))
    patch.setattr(tempfile, "tempdir", str(made))
    stash[OPEN].enter_context(guardian.guarded(made))
    watch = Leftovers(made, (os.fsencode(made), os.fsencode(base)), exempt={guardian.pid()})
    sys.addaudithook(lambda event, words: watch.made(str(words[0])) if event == "tempfile.mkdtemp" else None)
    touched, own = stash.setdefault(UNIT, []), threading.get_ident()  # other threads may be a wider fixture's
    sys.addaudithook(
        lambda event, _: touched.append(event) if event in WORLD and threading.get_ident() == own else None
    )
    stash[WATCH] = watch
    stash[MADE] = {None: watch.found()}
    return made


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (opened := session.config.stash.get(OPEN, None)) is not None:
        opened.close()


class Lasting:
    """Notes what fixtures of a wider scope make. A plugin of its own: those of the session ask no conftest.py below the top."""

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        watch = request.config.stash.get(WATCH, None)
        if watch is None or fixturedef.scope == "function":
            return (yield)
        before = watch.found()
        try:
            return (yield)
        finally:
            request.config.stash[MADE][fixturedef] = watch.beyond(watch.found(), before)

    def pytest_fixture_post_finalizer(
        self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
    ) -> None:
        if (made := request.config.stash.get(MADE, None)) is not None:
            made.pop(fixturedef, None)


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.has_plugin("leftovers"):
        config.pluginmanager.register(Lasting(), "leftovers")


@pytest.fixture(scope="session")
def leftovers_check(request: pytest.FixtureRequest, home: Path) -> Leftovers:
    """For a fixture whose processes start others whenever they like: `with leftovers_check.allowing(WORDS)`."""
    return request.config.stash[WATCH]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    if (watch := item.config.stash.get(WATCH, None)) is not None:
        watch.learn()
    yield
    if (watch := item.config.stash.get(WATCH, None)) is None:
        return
    deadline = time.monotonic() + PATIENCE_S * SLOWER
    while True:
        known = {thing: line for made in item.config.stash[MADE].values() for thing, line in made.items()}
        if not (left := watch.beyond(watch.found(), known)):
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    watch.remove(left)
    item.config.stash[MADE][None].update(
        {t: line for t, line in left.items() if t[0] == "thread"}
    )  # the next ones can't help it
    pytest.fail("left behind by this test:\n" + "\n".join(left.values()), pytrace=False)


class Eventually(Protocol):
    """`eventually(lambda: ..., timeout_s=5, what="...")` returns the first true value the condition gives."""

    def __call__(
        self, condition: Callable[[], T | Literal[False] | None], *, timeout_s: float = 60.0, what: str = ""
    ) -> T: ...


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """Wait for a condition by polling it; fail with `what` at the deadline.

    It is looked at every 5 ms, but not for more than a quarter of the time: what is waited for needs the processor, too.
    """

    def wait(condition: Callable[[], T | Literal[False] | None], *, timeout_s: float = 60.0, what: str = "") -> T:
        deadline = time.monotonic() + max(timeout_s, LEAST_S) * SLOWER
        while True:
            began = time.monotonic()
            if value := condition():
                return value
            if began > deadline:
                pytest.fail(f"not within {timeout_s} s: {what or condition}")
            time.sleep(min(0.1, max(0.005, 3 * (time.monotonic() - began))))

    return wait


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """`small_disk(size_bytes, kind)` mounts a real file system on a loop device; `small_disk(like=place)` mounts what is
    on the disk of another one at this moment, as after a power cut. Gone at the end."""
    mounted: dict[Path, Path] = {}

    def make(size_bytes: int = 0, kind: str = "ext4", *, like: Path | None = None) -> Path:
        image = tmp_path / f"disk-{len(mounted)}.image"
        place = tmp_path / f"disk-{len(mounted)}"
        if like is None:
            program = shutil.which(f"mkfs.{kind}", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
            if program is None:
                pytest.skip(f"left out: needs mkfs.{kind}")
            with image.open("wb") as file:
                file.truncate(size_bytes)
            subprocess.run([program, "-q", str(image)], check=True, capture_output=True)
        else:
            # A copy: namespaces that others made meanwhile may hold the old mount, and with it the old state, for long.
            subprocess.run(["cp", "--sparse=always", str(mounted[like]), str(image)], check=True)
            _unmount(like)
        place.mkdir()
        mount = ["mount", "-o", "loop", str(image), str(place)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"left out: no loop device here ({done.stderr.strip()})")
        mounted[place] = image
        return place

    yield make
    for place in mounted:
        _unmount(place)


class SmallTmpfs:
    """A tmpfs of its own, as the state directory's, that can be filled to the last byte."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._filler = place / "filler"

    def fill(self, filler: Path | None = None) -> None:
        """Nothing more fits, by a file of that name. What is there may still be written over."""
        self._filler = filler or self._filler
        with contextlib.suppress(OSError), self._filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        self._filler.unlink()


@pytest.fixture
def small_tmpfs() -> Iterator[Callable[[int], SmallTmpfs]]:
    """`small_tmpfs(size_bytes)` mounts one at a short path. Gone at the end."""
    made: list[Path] = []

    def make(size_bytes: int) -> SmallTmpfs:
        place = Path(tempfile.mkdtemp(prefix="kyb-tmpfs-"))
        made.append(place)
        options = f"size={size_bytes},mode=755,huge=never"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "kyb-test", str(place)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"left out: no tmpfs can be mounted here ({done.stderr.strip()})")
        return SmallTmpfs(place)

    yield make
    for place in made:
        _unmount(place)
        place.rmdir()


def _unmount(place: Path) -> None:
    # Not is_mount(): a file system without power answers no stat.
    if f" {place} " in Path("/proc/self/mounts").read_text():
        subprocess.run(["umount", "-l", str(place)], check=True)
