"""Which files of a stored workload go through pipes and which lie in CRIU's directory, and whether a directory has them all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.engine.host_memory import is_whole, large_files, small_files
from kybernate.engine.stored import PROCESS
from kybernate.model.snapshot_names import snapshot_name
from kybernate.store.manifests import Manifest, StoredFile
from kybernate.store.needs import Needs

pytestmark = pytest.mark.unit

SMALL, LARGE = ("core-1.img", "tree.json", "pagemap-1.img"), ("pages-1.img", "ghost-file-2.img", "layer-0.tar")


def manifest(*paths: str) -> Manifest:
    return Manifest(
        name=snapshot_name("a"),
        uid="0" * 32,
        created=0.0,
        extents=(),
        files=tuple(StoredFile(first=0, size=0, path=path) for path in paths),
        table=b"",
        state={},
        labels={},
        needs=Needs(),
        packs=(),
    )


def of_process(*names: str) -> list[str]:
    return [f"{PROCESS}/{name}" for name in names]


def test_memory_deleted_files_and_archives_are_large_and_the_rest_is_small() -> None:
    found = manifest(*of_process(*SMALL, *LARGE))
    assert small_files(found) == of_process(*SMALL)
    assert large_files(found) == of_process(*LARGE)


def test_what_is_not_of_the_processes_is_neither() -> None:
    found = manifest("pages-1.img", f"{PROCESS}es/pages-1.img", f"other/{PROCESS}/core-1.img")
    assert small_files(found) == large_files(found) == []


@given(names=st.lists(st.sampled_from([*SMALL, *LARGE]), unique=True))
def test_each_file_of_the_processes_is_one_of_both_in_its_order(names: list[str]) -> None:
    found = manifest(*of_process(*names))
    small, large = small_files(found), large_files(found)
    assert sorted(small + large) == sorted(of_process(*names))
    assert small == [path for path in of_process(*names) if path in small]


def test_a_directory_is_whole_once_every_large_file_lies_there(tmp_path: Path) -> None:
    found = manifest(*of_process(*SMALL, *LARGE))
    for name in LARGE:
        assert not is_whole(found, tmp_path)
        (tmp_path / name).touch()
    assert is_whole(found, tmp_path)
    assert is_whole(manifest(*of_process(*SMALL)), tmp_path / "nowhere"), "there is nothing large"
