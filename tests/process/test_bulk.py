"""A dump's memory goes through pipes: who takes it, or gives it, may fail at any time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Leftovers, Workloads

from kybernate.model.errors import KybernateError, NoRoom
from kybernate.model.types import WorkloadName
from kybernate.process import criu_images, images, restoring
from kybernate.process.bulk import Taken, Zeros, holds_pages, is_bulk, write_all
from kybernate.process.directory_bulk import DirectoryBulk
from kybernate.process.dumping import MARK, dump
from kybernate.process.restoring import restore
from kybernate.process.tree import Tree

from .dumps import FEATURES, feature, finish, wait_ready

pytestmark = pytest.mark.root


@pytest.fixture(params=[0, restoring.FILES_BYTES], ids=["stream", "files"])
def given(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How CRIU gets what it restores: large processes' images in a stream, small ones' in files."""
    monkeypatch.setattr(restoring, "FILES_BYTES", request.param)


@pytest.fixture
def tree(request: pytest.FixtureRequest, workloads: Workloads, eventually: Eventually) -> Tree:
    found = workloads.launch(*feature(getattr(request, "param", "zeros")), directory=FEATURES)
    wait_ready(found, eventually)
    return found


class Elsewhere:
    """The bulk in a directory that isn't the dump's; fails when it is told to."""

    def __init__(self, directory: Path, *, fails_at: str = "", after: int = 0) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.bulk = DirectoryBulk(directory)
        self.fails_at, self.after = fails_at, after

    def take(self, name: str, pipe: int) -> Taken:
        if self.fails_at and name.startswith(self.fails_at):
            left = self.after
            while left and (part := os.read(pipe, min(left, 65536))):
                left -= len(part)
            raise NoRoom("the store is full")
        return self.bulk.take(name, pipe)

    def forget(self) -> None:
        self.bulk.forget()

    def send(self, name: str, pipe: int, zeros: Zeros) -> None:
        if self.fails_at and name.startswith(self.fails_at):
            write_all(pipe, (self.directory / name).read_bytes()[: self.after])
            raise NoRoom("the store has gone")
        self.bulk.send(name, pipe, zeros)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize("tree", ["zeros", "saturated"], indirect=True)
def test_what_is_large_lies_elsewhere(tree: Tree, tmp_path: Path, workloads: Workloads) -> None:
    elsewhere = Elsewhere(tmp_path / "elsewhere")
    record = dump(tree, tmp_path / "images", sink=elsewhere, hold=True).record
    assert images.verify(tmp_path / "images", bulk_elsewhere=True) == record
    assert not any(is_bulk(name) for name in names(tmp_path / "images"))
    assert sum(path.stat().st_size for path in (tmp_path / "images").iterdir()) < 64 << 20
    assert names(tmp_path / "elsewhere") == sorted(name for name in record.files if is_bulk(name))
    tree.remove()
    again = restore(
        tmp_path / "images", name=WorkloadName("work"), run_directory=tree.run_directory, source=elsewhere
    ).tree
    workloads.trees.append(again)
    finish(again)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("fails_at", "after"), [("pages-", 0), ("pages-", 5 << 20), ("shm.tar", 0), ("control.tar", 0)]
)
def test_a_sink_that_fails_leaves_the_tree_as_it_was(
    tree: Tree, tmp_path: Path, frozen: bool, fails_at: str, after: int
) -> None:
    if frozen:
        tree.freeze()
    with pytest.raises(NoRoom, match="the store is full"):
        dump(
            tree,
            tmp_path / "images",
            sink=Elsewhere(tmp_path / "elsewhere", fails_at=fails_at, after=after),
            hold=True,
        )
    assert names(tmp_path) == ["elsewhere"]
    assert tree.frozen == frozen
    assert not (tree.run_directory / MARK).exists()
    tree.thaw()
    finish(tree)


@pytest.mark.parametrize("tree", ["saturated"], indirect=True)
def test_connections_survive_a_sink_that_fails(tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(NoRoom):
        dump(tree, tmp_path / "images", sink=Elsewhere(tmp_path / "elsewhere", fails_at="pages-"))
    finish(tree)


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize(
    ("fails_at", "after"), [("pages-", 0), ("pages-", 20000), ("shm.tar", 512), ("control.tar", 0)]
)
def test_a_source_that_fails_leaves_nothing(
    tree: Tree, tmp_path: Path, workloads: Workloads, leftovers: Leftovers, fails_at: str, after: int
) -> None:
    elsewhere = Elsewhere(tmp_path / "elsewhere")
    dump(tree, tmp_path / "images", sink=elsewhere, hold=True)
    tree.remove()
    elsewhere.fails_at, elsewhere.after = fails_at, after
    with pytest.raises(NoRoom, match="the store has gone"):
        restore(tmp_path / "images", name=WorkloadName("work"), run_directory=tree.run_directory, source=elsewhere)
    assert leftovers.found() == []
    elsewhere.fails_at = ""
    again = restore(
        tmp_path / "images", name=WorkloadName("work"), run_directory=tree.run_directory, source=elsewhere
    ).tree
    workloads.trees.append(again)
    finish(again)


def first_piece_ends(ghost: Path) -> int:
    """Of CRIU's image of a deleted file with holes, where CRIU takes the end of file for the end of the pieces."""
    content = ghost.read_bytes()
    at = 8
    for _ in ("the file", "its first piece"):
        size = int.from_bytes(content[at : at + 4], "little")
        entry = criu_images.fields(content[at + 4 : at + 4 + size])
        at += 4 + size
    return at + criu_images.integer(entry, 1)


@pytest.mark.parametrize("tree", ["holes"], indirect=True)
def test_a_deleted_file_that_comes_cut_off_is_none_with_a_longer_hole(
    tree: Tree, tmp_path: Path, leftovers: Leftovers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "FILES_BYTES", 0)
    elsewhere = Elsewhere(tmp_path / "elsewhere")
    dump(tree, tmp_path / "images", sink=elsewhere, hold=True)
    tree.remove()
    (ghost,) = elsewhere.directory.glob("ghost-file-*")
    elsewhere.fails_at, elsewhere.after = "ghost-", first_piece_ends(ghost)
    assert 1 << 20 <= elsewhere.after < (1 << 20) + 200
    with pytest.raises(NoRoom, match="the store has gone"):
        restore(tmp_path / "images", name=WorkloadName("work"), run_directory=tree.run_directory, source=elsewhere)
    assert leftovers.found() == []


def older(directory: Path) -> None:
    """Make of a dump one as format 1 had it: page images are whole."""
    record = json.loads((directory / "tree.json").read_text())
    for name, stretches in record.pop("zeros").items():
        content = (directory / name).read_bytes()
        for at, length in stretches:
            content = content[:at] + bytes(length) + content[at:]
        (directory / name).write_bytes(content)
        record["files"][name] = len(content)
    (directory / "tree.json").write_text(json.dumps(record | {"format": 1}))


@pytest.mark.usefixtures("given")
def test_a_dump_of_the_older_format_is_restored(tree: Tree, tmp_path: Path, workloads: Workloads) -> None:
    record = dump(tree, tmp_path / "images", hold=True).record
    assert record.zeros
    older(tmp_path / "images")
    assert images.verify(tmp_path / "images").zeros == {}
    tree.remove()
    again = restore(tmp_path / "images", name=WorkloadName("work"), run_directory=tree.run_directory).tree
    workloads.trees.append(again)
    finish(again)


def test_a_newer_format_is_refused(tree: Tree, tmp_path: Path) -> None:
    dump(tree, tmp_path / "images")
    path = tmp_path / "images" / "tree.json"
    path.write_text(path.read_text().replace(f'"format": {images.FORMAT}', f'"format": {images.FORMAT + 1}'))
    with pytest.raises(KybernateError, match=f"is of format {images.FORMAT + 1}"):
        images.verify(tmp_path / "images")
    finish(tree)


def test_names() -> None:
    assert all(is_bulk(name) for name in ("pages-1.img", "shm.tar", "layer-0.tar", "ghost-file-2.img"))
    assert not any(is_bulk(name) for name in ("pagemap-1.img", "core-1.img", "tree.json", "dump.log"))
    assert [name for name in ("pages-1.img", "pagemap-1.img", "shm.tar") if holds_pages(name)] == ["pages-1.img"]
