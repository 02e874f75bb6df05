"""Open and mapped files of a process, read of this very one."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kybernate.model.types import HostPid
from kybernate.process.images import NeededFile
from kybernate.process.needs import differences, is_below, needed_files
from kybernate.process.open_files import MappedFile, OpenFile, mapped_files, open_files

pytestmark = pytest.mark.unit

OWN = HostPid(os.getpid())


def opened(descriptor: int) -> OpenFile:
    (found,) = [file for file in open_files(OWN) if file.number == descriptor]
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "a file (deleted) with blanks"
    made.write_bytes(b"x" * 5000)
    return made


@pytest.mark.parametrize(
    ("flags", "writable"),
    [
        pytest.param(os.O_RDONLY, False, id="reading"),
        pytest.param(os.O_WRONLY, True, id="writing"),
        pytest.param(os.O_RDWR | os.O_APPEND, True, id="both"),
        pytest.param(os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, False, id="other flags say nothing of it"),
    ],
)
def test_how_a_file_was_opened(path: Path, flags: int, *, writable: bool) -> None:
    descriptor = os.open(path, flags)
    try:
        found = opened(descriptor)
        assert (found.target, found.deleted, found.writable) == (str(path), False, writable)
        status = found.stat()
        assert status is not None
        assert status.st_size == 5000
    finally:
        os.close(descriptor)
    assert found.stat() is None, "closed by now"


def test_a_file_without_a_name_says_which_it_had(path: Path) -> None:
    with path.open("rb") as file:
        path.unlink()
        found = opened(file.fileno())
        assert (found.target, found.deleted) == (str(path), True)


def test_a_pipe_is_no_path_and_no_socket() -> None:
    reading, writing = os.pipe()
    try:
        found = opened(reading)
        assert found.target.startswith("pipe:[")
        assert (found.socket_inode, found.socket_protocol) == (None, "")
    finally:
        os.close(reading)
        os.close(writing)


def test_a_socket_is_known_by_its_inode() -> None:
    file = OpenFile(OWN, 3, "socket:[12345]", deleted=False, flags=2, link="/proc/self/fd/nowhere")
    assert file.socket_inode == 12345
    assert file.socket_protocol == ""


def test_of_a_process_that_is_not_there_nothing_is_open() -> None:
    assert list(open_files(HostPid((1 << 22) + 1))) == []
    assert list(mapped_files(HostPid((1 << 22) + 1))) == []


# -- mappings ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mapped(path: Path) -> Iterator[Path]:
    with (
        path.open("r+b") as file,
        mmap.mmap(file.fileno(), 4096),
        mmap.mmap(file.fileno(), 4096, access=mmap.ACCESS_COPY),
    ):
        yield path


def of(path: Path) -> set[MappedFile]:
    return {mapping for mapping in mapped_files(OWN) if mapping.path == str(path)}


def test_each_way_of_mapping_is_listed_once(mapped: Path) -> None:
    assert of(mapped) == {
        MappedFile(OWN, str(mapped), deleted=False, shared=True, writable=True),
        MappedFile(OWN, str(mapped), deleted=False, shared=False, writable=True),
    }


def test_a_mapped_file_that_was_deleted_is_said_to_be(mapped: Path) -> None:
    mapped.unlink()
    assert {mapping.deleted for mapping in of(mapped)} == {True}


def test_memory_that_is_no_file_is_left_out() -> None:
    assert not any(mapping.path.startswith("[") for mapping in mapped_files(OWN))


# -- what a restore needs of them ----------------------------------------------------------------------------------------


def test_needed_are_regular_files_that_are_open_or_mapped(path: Path) -> None:
    with path.open("rb"):
        found = {file.path: file for file in needed_files([OWN], root=Path("/"), own=[])}
        assert found[str(path)] == NeededFile(str(path), 5000, path.stat().st_mtime_ns, written=False)
        assert list(found) == sorted(found)
        assert not any(name.startswith(("/dev/", "/proc/", "/sys/")) for name in found)
        assert str(path) not in {file.path for file in needed_files([OWN], root=Path("/"), own=[str(path.parent)])}, (
            "what a dump takes along isn't needed"
        )


def test_written_is_what_is_open_for_writing_anywhere(path: Path) -> None:
    with path.open("rb"), path.open("r+b"):
        found = {file.path: file for file in needed_files([OWN], root=Path("/"), own=[])}
        assert found[str(path)].written


def test_what_was_deleted_is_not_needed(path: Path) -> None:
    with path.open("rb"):
        path.unlink()
        assert str(path) not in {file.path for file in needed_files([OWN], root=Path("/"), own=[])}


@pytest.mark.parametrize(
    ("size", "written", "lines"),
    [
        pytest.param(5000, False, 0, id="as it was"),
        pytest.param(4999, False, 1, id="of another size"),
        pytest.param(4999, True, 0, id="of another size, but it was being written"),
    ],
)
def test_a_file_that_changed_is_named(path: Path, size: int, lines: int, *, written: bool) -> None:
    found = differences([NeededFile(str(path), size, 0, written)])
    assert len(found) == lines
    assert all(line == f"{path} has 5000 bytes, had {size} when the dump was made" for line in found)


def test_a_missing_file_is_named_even_if_it_was_written() -> None:
    assert differences([NeededFile("/nowhere/x", 1, 0, written=True)]) == [
        "/nowhere/x is missing: No such file or directory"
    ]


@pytest.mark.root
@pytest.mark.parametrize("swapped", ["the file", "its directory", "a directory that the link leads over"])
@pytest.mark.parametrize(
    ("user", "mode", "written", "astray"),
    [
        pytest.param(1234, 0o600, False, True, id="of a user, to a secret of another's"),
        pytest.param(1234, 0o644, True, True, id="of a user, to a file that another may write"),
        pytest.param(1234, 0o644, False, False, id="of a user, to what everybody may read"),
        pytest.param(5678, 0o600, True, False, id="of the file's owner"),
        pytest.param(0, 0o600, True, False, id="of root"),
    ],
)
def test_a_link_that_leads_to_another_s_file_is_named(
    tmp_path: Path, swapped: str, user: int, mode: int, *, written: bool, astray: bool
) -> None:
    theirs, own = tmp_path / "theirs", tmp_path / "own"
    theirs.mkdir()
    own.mkdir()
    (theirs / "file").write_text("content")
    (theirs / "file").chmod(mode)
    os.chown(theirs / "file", 5678, 5678)
    path = {"the file": own / "file", "its directory": own / "directory" / "file"}.get(swapped, own / "over" / "file")
    link = path if swapped == "the file" else own / "directory"
    link.symlink_to(theirs / "file" if swapped == "the file" else "../theirs")
    os.chown(link, user, user, follow_symlinks=False)
    if swapped.startswith("a directory"):
        (own / "over").symlink_to(own / "directory")
    found = differences([NeededFile(str(path), 7, 0, written)])
    assert found == [f"{path} is reached by a symbolic link of user 1234 to what isn't theirs"] * astray


@pytest.mark.parametrize(
    ("path_", "directories", "below"),
    [
        ("/a/b", ("/a",), True),
        ("/a", ("/a",), True),
        ("/ab", ("/a",), False),
        ("/a/b", ("/a/",), True),
        ("/a", ("/a/b",), False),
        ("/a", (), False),
        ("/c/x", ("/a", "/c"), True),
        ("/anything", ("/",), True),
    ],
)
def test_a_path_is_below_a_directory_by_its_parts(path_: str, directories: tuple[str, ...], *, below: bool) -> None:
    assert is_below(path_, *directories) is below
