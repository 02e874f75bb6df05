"""Output has a bound: its oldest part is given back while programs print, nothing that is kept is lost or moved."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Workloads

from kybernate.model.types import MIB, WorkloadName
from kybernate.process import output
from kybernate.process.dumping import dump
from kybernate.process.restoring import restore
from kybernate.process.tree import OUTPUT

BOUND = MIB
# Prints 1 MiB of numbered lines and goes on only when no more than the bound is taken, so that no clock decides.
PRINTER = f"""
import os, sys, time
step, steps = 0, int(sys.argv[1])
while step < steps:
    os.write(1, b"".join(b"%d %d\\n" % (step, line) for line in range(100_000)))
    while os.fstat(1).st_blocks * 512 > {BOUND + MIB // 4}:
        time.sleep(0.005)
    step += 1
    if step == 5 and len(sys.argv) > 2:
        open(sys.argv[2], "w").close()
        while os.path.exists(sys.argv[2]):
            time.sleep(0.005)
print("done")
"""


@pytest.fixture(params=["disk", "tmpfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk":
        yield tmp_path
        return
    directory = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="kyb-output-"))
    yield directory
    shutil.rmtree(directory)


def taken(path: Path) -> int:
    return path.stat().st_blocks * 512


def lines(begin: int, end: int) -> bytes:
    return b"".join(b"line %09d\n" % number for number in range(begin, end))


def test_the_oldest_part_is_given_back_and_the_rest_stays_where_it_is(place: Path) -> None:
    path = place / "log"
    with path.open("a+b", buffering=0) as log:
        written = 0
        for _ in range(20):
            log.write(lines(written, written + 20_000))
            written += 20_000
            output.bound(log.fileno(), BOUND)
            assert taken(path) <= BOUND + 8192
        begin = output.first_line(log.fileno())
        kept = os.pread(log.fileno(), 8 * MIB, begin)
        first = begin // len(lines(0, 1))
        assert kept == lines(first, written), "whole lines, to the last one, and no zeros"
        assert len(kept) > BOUND // 2
        length = path.stat().st_size
    assert length == len(lines(0, 1)) * written
    path.chmod(0o640)
    output.close_up(str(path))
    assert path.read_bytes() == kept
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    output.close_up(str(path))
    assert path.read_bytes() == kept, "a plain file stays as it is"


def test_what_is_small_or_has_no_line_ends(place: Path) -> None:
    path = place / "log"
    with path.open("a+b", buffering=0) as log:
        assert output.first_byte(log.fileno()) == output.first_line(log.fileno()) == 0
        log.write(b"short")
        assert output.bound(log.fileno(), BOUND) == 5
        assert output.first_line(log.fileno()) == 0
        log.write(b"x" * 4 * MIB)
        output.bound(log.fileno(), BOUND)
        begin = output.first_line(log.fileno())
        assert set(os.pread(log.fileno(), 8 * MIB, begin)) == {ord("x")}


def test_nothing_is_closed_up_through_what_lies_in_the_way(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("untouched")
    (tmp_path / "link").symlink_to(secret)
    with pytest.raises(OSError, match="symbolic links"):
        output.close_up(str(tmp_path / "link"))
    os.mkfifo(tmp_path / "pipe")
    output.close_up(str(tmp_path / "pipe"))
    assert secret.read_text() == "untouched"


@pytest.mark.parametrize("isolated", [pytest.param(True, marks=pytest.mark.root), False])
def test_a_program_that_prints_without_end_is_bounded(
    workloads: Workloads, eventually: Eventually, isolated: bool
) -> None:
    tree = workloads.python(PRINTER, "40", output_bytes=BOUND, isolated=isolated)
    eventually(tree.exit, timeout_s=120, what="it prints 40 times the bound")
    path = tree.run_directory / OUTPUT
    content = path.read_bytes()
    assert content.endswith(b"39 99999\ndone\n")
    assert BOUND // 2 < len(content) <= taken(path) + 4096, "a plain file, now that it has ended"
    numbers = [tuple(map(int, line.split())) for line in content.splitlines()[:-1]]
    steps = [step * 100_000 + line for step, line in numbers]
    assert steps == list(range(steps[0], 40 * 100_000)), "no line is missing or torn"


@pytest.mark.root
def test_the_bound_holds_after_a_dump_and_a_restore(
    workloads: Workloads, elsewhere: Workloads, tmp_path: Path, eventually: Eventually
) -> None:
    station = tmp_path / "station"
    tree = workloads.python(PRINTER, "20", str(station), output_bytes=BOUND)
    eventually(station.exists, timeout_s=60, what="it has printed five times the bound")
    dump(tree, tmp_path / "images", hold=True)
    tree.remove()
    shutil.rmtree(tree.run_directory)
    again = restore(
        tmp_path / "images",
        name=WorkloadName("again"),
        run_directory=elsewhere.state_directory / "workloads/again",
        output_bytes=BOUND,
    ).tree
    elsewhere.trees.append(again)
    station.unlink()
    eventually(again.exit, timeout_s=60, what="it prints fifteen times the bound more")
    content = (again.run_directory / OUTPUT).read_bytes()
    assert content.endswith(b"19 99999\ndone\n")
    assert b"\0" not in content


def test_a_life_whose_supervisor_was_killed_leaves_a_plain_file_to_the_next(workloads: Workloads) -> None:
    run = workloads.spec("true").run_directory
    run.mkdir(parents=True)
    with (run / OUTPUT).open("a+b", buffering=0) as log:
        log.write(lines(0, 400_000))
        output.bound(log.fileno(), BOUND)
    tree = workloads.shell("echo next")
    content = (tree.run_directory / OUTPUT).read_bytes()
    assert content.startswith(b"line ")
    assert b"\0" not in content


def test_output_is_removed_by_a_program_that_may(workloads: Workloads, eventually: Eventually) -> None:
    """Its own affair; the supervisor looks on after it all the same."""
    tree = workloads.shell(
        'rm "$KYBERNATE_RUN_DIRECTORY/output.log"; mkfifo "$KYBERNATE_RUN_DIRECTORY/output.log"; exit 3'
    )
    eventually(tree.exit)
    assert tree.exit_status() == 3
