"""The record of a dump: read as it was written, and never believed where it makes no sense: it may come out of a bucket."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from kybernate.model.errors import BadInput, KybernateError, NotFound, Unsupported
from kybernate.process import images
from kybernate.process.bulk import holds_pages
from kybernate.process.images import (
    Launched,
    NeededFile,
    TreeRecord,
    layer_archive,
    read,
    read_launched,
    verify,
)

pytestmark = pytest.mark.unit

LAUNCHED = Launched(
    argv=("python", "serve.py"),
    environment={"PATH": "/bin", "EMPTY": ""},
    directory="/srv",
    uid=1000,
    gid=1000,
    groups=(4, 27),
    network="none",
    layers=("/data",),
)
RECORD = TreeRecord(
    name="a",
    main_inside=2,
    last_inside=40,
    run_directory="/run/kybernate/workloads/a",
    state_directory="/run/kybernate",
    launched=LAUNCHED,
    processes=("python serve.py",),
    needs=(NeededFile("/lib/libc.so.6", 2_000_000, 1_700_000_000_000_000_000, written=False),),
    output_bytes=12,
    taken=1_764_000_000.5,
    criu="4.2",
    kernel="6.18.0",
    machine="x86_64",
    cpu_flags=("avx2", "fma"),
    files={"pages-1.img": 4096, "tree.img": 100},
)


def raw(**changed: Any) -> dict[str, Any]:
    written_out: dict[str, Any] = json.loads(json.dumps(asdict(RECORD)))
    return {"format": images.FORMAT} | written_out | changed


def written(directory: Path, content: object) -> Path:
    (directory / "tree.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


def test_it_is_read_as_it_was_written_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    RECORD.write(tmp_path)
    assert read(tmp_path) == RECORD
    assert (tmp_path / "tree.json").stat().st_mode & 0o077 == 0, "it holds the workload's environment"
    assert [path.name for path in tmp_path.iterdir()] == ["tree.json"], "no half of one is left"


def test_a_dump_is_as_large_as_its_files(tmp_path: Path) -> None:
    assert RECORD.bytes == 4196
    assert replace(RECORD, files={}).bytes == 0


def test_without_a_record_there_is_no_dump(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="holds no dump") as refused:
        read(tmp_path)
    assert refused.value.hint == "tree.json is missing, so it never was complete"
    (tmp_path / "file").touch()
    with pytest.raises(NotFound):
        read(tmp_path / "file")


def test_another_format_is_said_as_that(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is of format 4, this Kybernate reads up to 3"):
        read(written(tmp_path, raw(format=4)))


def test_fields_of_a_newer_version_are_left_out(tmp_path: Path) -> None:
    assert read(written(tmp_path, raw(surplus=[1]))) == RECORD


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("{", id="cut off"),
        pytest.param("[" * 100_000, id="nested deeply"),
        pytest.param([], id="a list"),
        pytest.param({"format": 1}, id="nothing in it"),
        pytest.param(raw(name=3), id="a name that is a number"),
        pytest.param(raw(name="a\0b"), id="NUL"),
        pytest.param(raw(main_inside=1), id="pid 1 is ours"),
        pytest.param(raw(main_inside=True), id="a flag for a number"),
        pytest.param(raw(main_inside="2"), id="a text for a number"),
        pytest.param(raw(run_directory="run/a"), id="a relative path"),
        pytest.param(raw(state_directory="/run/../etc"), id="a path that leads up"),
        pytest.param(raw(processes="python"), id="a text for a list"),
        pytest.param(raw(output_bytes=-1), id="a negative size"),
        pytest.param(raw(taken="now"), id="no time"),
        pytest.param(raw(files={"../x": 1}), id="a file elsewhere"),
        pytest.param(raw(files={"tree.json": 1}), id="the record itself"),
        pytest.param(raw(files={"": 1}), id="a file without a name"),
        pytest.param(raw(files={"..": 1}), id="the directory above"),
        pytest.param(raw(files={"x": -1}), id="a file of a negative size"),
        pytest.param(raw(needs=[{"path": "/x", "bytes": 1, "mtime_ns": 1e999, "written": 0}]), id="an infinite time"),
        pytest.param(raw(needs=[{"path": "/x"}]), id="half a needed file"),
        pytest.param(raw(launched={}), id="no launch"),
        pytest.param(raw(launched=None), id="nothing for a launch"),
        pytest.param(raw(cpu_flags=[1]), id="a number for a flag"),
        pytest.param(raw(taken=10**400), id="a time that no clock shows"),
    ],
)
def test_what_makes_no_sense_is_damaged(tmp_path: Path, content: object) -> None:
    with pytest.raises(BadInput, match=r"tree.json is damaged"):
        read(written(tmp_path, content))


@pytest.mark.parametrize("field", [name for name in raw() if name != "format"])
def test_every_field_is_needed(tmp_path: Path, field: str) -> None:
    content = raw()
    del content[field]
    with pytest.raises(BadInput, match=f"is damaged: KeyError.'{field}'"):
        read(written(tmp_path, content))


# -- files ---------------------------------------------------------------------------------------------------------------


def test_a_missing_file_and_one_of_another_size_are_named(tmp_path: Path) -> None:
    replace(RECORD, files={"layer-0.tar": 3}).write(tmp_path)
    with pytest.raises(BadInput, match=r"layer-0.tar is missing"):
        verify(tmp_path)
    (tmp_path / "layer-0.tar").write_bytes(b"four")
    with pytest.raises(BadInput, match=r"layer-0.tar has 4 bytes instead of 3"):
        verify(tmp_path)


def test_layers_are_counted_from_nought_and_pages_known_by_their_name() -> None:
    assert layer_archive(0) == "layer-0.tar"
    assert holds_pages("pages-3.img")
    assert not holds_pages("pagemap-3.img")


# -- how it was started --------------------------------------------------------------------------------------------------


def test_how_it_was_started_is_read_from_its_run_directory(tmp_path: Path) -> None:
    (tmp_path / "launch.json").write_text(json.dumps(asdict(LAUNCHED)))
    assert read_launched(tmp_path) == LAUNCHED


def test_one_that_did_not_write_it_down_must_be_started_anew(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="can't be dumped") as refused:
        read_launched(tmp_path)
    assert refused.value.hint == "start it anew"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"argv": 1}'])
def test_a_damaged_one_is_said_to_be_that(tmp_path: Path, content: str) -> None:
    (tmp_path / "launch.json").write_text(content)
    with pytest.raises(KybernateError, match="is damaged"):
        read_launched(tmp_path)
