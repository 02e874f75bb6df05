"""The agent's own directory: noticed when it is full, said once, and its own log kept within its bounds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.agent.building import Clock

from kybernate.agent.records.database import Database
from kybernate.agent.records.events import Events
from kybernate.agent.state_watch import FULL_BYTES, StateWatch, rotate_own
from kybernate.model.api import EventView
from kybernate.model.layout import StateDirectory
from kybernate.model.types import MIB

pytestmark = pytest.mark.unit


class Disk:
    """What the kernel says of the directory's file system."""

    def __init__(self) -> None:
        self.free = 50 * MIB
        self.files_free = 1000

    def statvfs(self, _: object) -> SimpleNamespace:
        return SimpleNamespace(
            f_blocks=100 * MIB // 4096,
            f_frsize=4096,
            f_bavail=self.free // 4096,
            f_files=2000,
            f_favail=self.files_free,
        )


class Room:
    def __init__(self, root: Path, database: Database) -> None:
        self.root = root
        self.events = Events(database=database, clock=Clock(), keep=1000)
        self.room = StateWatch(
            state=StateDirectory(root),
            database=database,
            events=self.events,
            log_bytes=1000,
            bounded=(root / "worker.log",),
        )

    async def said(self) -> list[EventView]:
        return await self.events.last(100)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(os, "statvfs", made.statvfs)
    return made


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    database = Database(tmp_path / "agent.db")
    database.open()
    yield Room(tmp_path, database)
    database.close()


async def test_with_room_there_is_nothing_to_say(room: Room, disk: Disk) -> None:
    assert room.room.view() is None, "nobody has looked yet"
    room.room.check()
    view = room.room.view()
    assert view is not None
    assert (view.total_bytes, view.free_bytes, view.problem) == (100 * MIB, 50 * MIB, None)
    assert await room.said() == []


async def test_a_full_one_is_said_once_with_its_largest_files(room: Room, disk: Disk) -> None:
    (room.root / "workloads" / "a").mkdir(parents=True)
    (room.root / "workloads" / "a" / "output.log").write_bytes(b"x" * 3 * MIB)
    disk.free = FULL_BYTES - 4096
    for _ in range(3):
        room.room.check()
    view = room.room.view()
    assert view is not None
    assert view.problem is not None
    assert view.problem.endswith("nothing can be started or remembered; its largest: workloads/a/output.log 3.0 MiB")
    (event,) = await room.said()
    assert (event.kind, event.text) == ("state-full", view.problem)


async def test_it_does_not_flicker_at_the_border(room: Room, disk: Disk) -> None:
    disk.free = FULL_BYTES - 4096
    room.room.check()
    disk.free = FULL_BYTES + MIB
    room.room.check()
    view = room.room.view()
    assert view is not None
    assert view.problem is not None, "still the same trouble"
    assert view.free_bytes == FULL_BYTES + MIB, "with the number of now"
    disk.free = 2 * FULL_BYTES
    room.room.check()
    assert [event.kind for event in await room.said()] == ["state-full", "state-room"]


async def test_a_disk_without_room_for_names_is_full_too(room: Room, disk: Disk) -> None:
    disk.files_free = 15
    room.room.check()
    view = room.room.view()
    assert view is not None
    assert view.problem is not None
    assert "is full (15 files left)" in view.problem


def test_logs_of_others_are_bounded_and_one_that_is_not_there_is_fine(room: Room, disk: Disk) -> None:
    room.room.check()
    log = room.root / "worker.log"
    log.write_bytes(b"x" * 100_000)
    room.room.check()
    assert log.stat().st_blocks * 512 < 100_000


# -- its own log ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_log(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = tmp_path / "agent.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    yield path, descriptor
    os.close(descriptor)


def test_a_log_that_has_grown_goes_on_in_a_new_file(own_log: tuple[Path, int]) -> None:
    path, descriptor = own_log
    os.write(descriptor, b"old " * 10)
    assert not rotate_own(path, 40, descriptors=(descriptor,)), "just as large as it may be"
    os.write(descriptor, b"!")
    assert rotate_own(path, 40, descriptors=(descriptor,))
    os.write(descriptor, b"new")
    assert path.read_bytes() == b"new"
    assert path.with_name("agent.log.1").read_bytes() == b"old " * 10 + b"!"


def test_another_programs_file_of_that_name_is_left_alone(own_log: tuple[Path, int], tmp_path: Path) -> None:
    path, descriptor = own_log
    other = tmp_path / "other.log"
    other.write_bytes(b"x" * 100)
    assert not rotate_own(other, 10, descriptors=(descriptor,))
    assert not rotate_own(tmp_path / "none", 10, descriptors=(descriptor,))
    assert not rotate_own(path, 10, descriptors=()), "nobody writes there by them"
    assert other.read_bytes() == b"x" * 100
