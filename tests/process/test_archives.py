"""Archives of directories that are a workload's own, while we are root: nothing it puts there leads us elsewhere."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Workloads

from kybernate.model.types import WorkloadName
from kybernate.process import archives
from kybernate.process.dumping import dump
from kybernate.process.restoring import restore

from .dumps import wait_ready

pytestmark = pytest.mark.root
NOBODY = 65534


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "shadow"
    path.write_text("secret")
    path.chmod(0o600)
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "place"
    path.mkdir(mode=0o700)
    os.chown(path, NOBODY, NOBODY)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


Entry = tuple[str, bytes, str | bytes]
"""Name, type, link name or content."""


def saved(directory: Path) -> io.BytesIO:
    file = io.BytesIO()
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        archives.save(descriptor, file)
    finally:
        os.close(descriptor)
    file.seek(0)
    return file


def forged(*entries: Entry) -> io.BytesIO:
    """An archive that `save` never writes: (name, type, link name or content) each."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, more in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = kind, 0o777
            if kind == tarfile.REGTYPE:
                assert isinstance(more, bytes)
                entry.size = len(more)
                archive.addfile(entry, io.BytesIO(more))
            else:
                entry.linkname = str(more)
                archive.addfile(entry)
    file.seek(0)
    return file


def untouched(victim: Path) -> bool:
    found = victim.stat()
    return (found.st_uid, stat.S_IMODE(found.st_mode), victim.read_text()) == (0, 0o600, "secret")


def test_a_symbolic_link_of_two_names_gives_nobody_the_file_it_leads_to(
    place: Path, target: Path, victim: Path
) -> None:
    (place / "a").symlink_to(victim)
    os.link(place / "a", place / "b", follow_symlinks=False)
    os.chown(place / "a", NOBODY, NOBODY, follow_symlinks=False)
    archives.lay(saved(place), target)
    assert untouched(victim)
    assert (target / "b").is_symlink()
    assert os.path.samestat((target / "a").lstat(), (target / "b").lstat()), "they are one link still"
    assert (target / "a").lstat().st_uid == NOBODY


def test_what_is_laid_is_root_s_alone_until_it_is_whole(place: Path, target: Path) -> None:
    """Whoever gets it could else put links in our way while we write."""
    place.chmod(0o755)
    (place / "data").write_text("x")
    seen = []

    class Watched(io.BytesIO):
        def read(self, *arguments: Any) -> bytes:
            found = target.stat()
            seen.append((found.st_uid, stat.S_IMODE(found.st_mode)))
            return super().read(*arguments)

    archives.lay(Watched(saved(place).getvalue()), target)
    assert set(seen) == {(0, 0o700)}
    assert (target.stat().st_uid, stat.S_IMODE(target.stat().st_mode)) == (NOBODY, 0o755)
    assert (target / "data").read_text() == "x"


def test_a_directory_that_becomes_a_link_while_it_is_saved_is_not_followed(
    place: Path, tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes stand still, but others of its user's don't."""
    inner = place / "inner"
    inner.mkdir()
    (inner / "shadow").write_text("own")
    real = os.scandir

    def swapping(directory: int) -> Any:
        found = real(directory)
        if inner.is_dir() and not inner.is_symlink() and os.path.samestat(os.fstat(directory), inner.stat()):
            inner.rename(tmp_path / "away")
            inner.symlink_to(victim.parent)
        return found

    monkeypatch.setattr(os, "scandir", swapping)
    file = saved(place)
    assert b"secret" not in file.getvalue()


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([("d", tarfile.SYMTYPE, "OUT"), ("./d/shadow", tarfile.REGTYPE, b"!")], id="through-a-dot"),
        pytest.param([("d", tarfile.SYMTYPE, "OUT"), ("d//shadow", tarfile.REGTYPE, b"!")], id="through-two-slashes"),
        pytest.param([("d", tarfile.SYMTYPE, "OUT"), ("d/shadow", tarfile.REGTYPE, b"!")], id="through-a-link"),
        pytest.param([("f", tarfile.SYMTYPE, "OUT/shadow"), ("f", tarfile.REGTYPE, b"!")], id="twice"),
        pytest.param([("../shadow", tarfile.REGTYPE, b"!")], id="above"),
        pytest.param([("f", tarfile.LNKTYPE, "../shadow")], id="a-hard-link-above"),
        pytest.param([(".", tarfile.SYMTYPE, "OUT")], id="the-directory-a-link"),
    ],
)
def test_an_archive_that_leads_out_is_refused(target: Path, victim: Path, entries: list[Entry]) -> None:
    entries = [(n, k, m.replace("OUT", str(victim.parent)) if isinstance(m, str) else m) for n, k, m in entries]
    with pytest.raises(tarfile.TarError):
        archives.lay(forged(*entries), target)
    assert untouched(victim)


def test_a_user_s_control_directory_brings_nobody_a_file_of_root_s(
    workloads: Workloads, victim: Path, tmp_path: Path, eventually: Eventually
) -> None:
    """The same through a whole dump and restore, and with what its user has put there in between."""
    tree = workloads.shell("echo ready; while :; do sleep 0.1; done")
    wait_ready(tree, eventually)
    control = tree.run_directory / "control"
    (control / "a").symlink_to(victim)
    os.link(control / "a", control / "b", follow_symlinks=False)
    (control / "kept").mkdir()
    (control / "kept" / "shadow").write_text("own")
    dump(tree, tmp_path / "images", hold=True)
    tree.remove()
    shutil.rmtree(control, ignore_errors=True)
    control.mkdir()
    (control / "kept").symlink_to(victim.parent)
    again = restore(tmp_path / "images", name=WorkloadName("work"), run_directory=tree.run_directory).tree
    workloads.trees.append(again)
    assert untouched(victim)
    assert (control / "kept" / "shadow").read_text() == "own"
    assert not (control / "kept").is_symlink()


def test_a_layer_s_directory_that_became_a_link_is_refused(
    workloads: Workloads, tmp_path: Path, eventually: Eventually
) -> None:
    """Else its user could have a layer of its own over any directory."""
    data, other = tmp_path / "data", tmp_path / "other"
    data.mkdir()
    other.mkdir()
    tree = workloads.shell("echo ready; while :; do sleep 0.1; done", layers=[data])
    wait_ready(tree, eventually)
    dump(tree, tmp_path / "images", hold=True)
    tree.remove()
    data.rmdir()
    data.symlink_to(other)
    with pytest.raises(Exception, match="is another directory now"):
        restore(tmp_path / "images", name=WorkloadName("work"), run_directory=tree.run_directory)
    data.unlink()
    data.mkdir()
    workloads.trees.append(
        restore(tmp_path / "images", name=WorkloadName("work"), run_directory=tree.run_directory).tree
    )


def test_a_layer_given_by_a_link_lies_over_the_directory_meant(
    workloads: Workloads, tmp_path: Path, eventually: Eventually
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    tree = workloads.shell(f"echo x > {tmp_path}/link/file; echo ready; sleep 100 & wait", layers=[tmp_path / "link"])
    wait_ready(tree, eventually)
    assert list((tmp_path / "data").iterdir()) == [], "the host's directory stays as it was"
    dump(tree, tmp_path / "images", hold=True)
    tree.remove()
    again = restore(tmp_path / "images", name=WorkloadName("work"), run_directory=tree.run_directory).tree
    workloads.trees.append(again)
    assert (tree.run_directory / "layers/0/file").read_text() == "x\n"
