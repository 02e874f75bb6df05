"""Timers in a dump that stand still with ticks nobody has read: they expire again after a whole period."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.errors import BadInput
from kybernate.process import criu_images
from kybernate.process.criu_timers import rearm

pytestmark = pytest.mark.unit

TIMER = 12
VALUE_S, VALUE_NS, INTERVAL_S, INTERVAL_NS, TICKS = 7, 8, 9, 10, 6
S = 1_000_000_000


def timer(*, value_ns: int, interval_ns: int, ticks: int = 3) -> bytes:
    fields: criu_images.Fields = {
        1: [5],
        TICKS: [ticks],
        VALUE_S: [value_ns // S],
        VALUE_NS: [value_ns % S],
        INTERVAL_S: [interval_ns // S],
        INTERVAL_NS: [interval_ns % S],
    }
    return criu_images.message({1: [9], 2: [5], TIMER: [criu_images.message(fields)]})


def other(number: int) -> bytes:
    """A file of another kind."""
    return criu_images.message({1: [1], 2: [number], 3: [criu_images.message({1: [number]})]})


def write(directory: Path, *messages: bytes) -> Path:
    path = directory / "files.img"
    head = (0x54564319).to_bytes(4, "little") + (0x56303138).to_bytes(4, "little")
    path.write_bytes(head + b"".join(len(each).to_bytes(4, "little") + each for each in messages))
    return path


def timers(path: Path) -> list[tuple[int, int, int]]:
    """Time left and period in nanoseconds, and the ticks."""
    found = []
    for message in criu_images.entries(path):
        for inner in criu_images.fields(message).get(TIMER, []):
            assert isinstance(inner, bytes)
            fields = criu_images.fields(inner)
            value, interval = (
                criu_images.integer(fields, s) * S + criu_images.integer(fields, ns)
                for s, ns in ((VALUE_S, VALUE_NS), (INTERVAL_S, INTERVAL_NS))
            )
            found.append((value, interval, criu_images.integer(fields, TICKS)))
    return found


def test_a_timer_that_stands_still_gets_a_whole_period_and_keeps_its_ticks(tmp_path: Path) -> None:
    path = write(tmp_path, other(1), timer(value_ns=0, interval_ns=2 * S + 7, ticks=4), other(2))
    assert rearm(tmp_path) == 1
    assert timers(path) == [(2 * S + 7, 2 * S + 7, 4)]


@pytest.mark.parametrize(
    ("value_ns", "interval_ns"),
    [
        pytest.param(5, S, id="runs, and has nanoseconds left"),
        pytest.param(S, 5, id="runs, and has seconds left"),
        pytest.param(0, 0, id="was never set, or has fired its one time"),
        pytest.param(S, 0, id="fires once"),
    ],
)
def test_any_other_timer_stays_to_the_byte(tmp_path: Path, value_ns: int, interval_ns: int) -> None:
    path = write(tmp_path, timer(value_ns=value_ns, interval_ns=interval_ns), other(1))
    before = path.read_bytes()
    assert rearm(tmp_path) == 0
    assert path.read_bytes() == before


def test_what_is_beside_a_mended_timer_stays_in_its_order(tmp_path: Path) -> None:
    write(tmp_path, other(1), timer(value_ns=0, interval_ns=5), other(2), timer(value_ns=0, interval_ns=S), other(3))
    path = tmp_path / "files.img"
    before = list(criu_images.entries(path))
    assert rearm(tmp_path) == 2
    after = list(criu_images.entries(path))
    assert [after[i] for i in (0, 2, 4)] == [before[i] for i in (0, 2, 4)]
    assert rearm(tmp_path) == 0, "it is mended once"


@given(timers_=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3 * S), st.integers(0, 1 << 40)), max_size=6))
def test_afterwards_every_periodic_timer_runs(
    timers_: list[tuple[int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(
        tmp_path_factory.mktemp("t"),
        *(timer(value_ns=value, interval_ns=interval, ticks=ticks) for value, interval, ticks in timers_),
    )
    rearm(path.parent)
    assert timers(path) == [(value or interval, interval, ticks) for value, interval, ticks in timers_]


def test_a_dump_without_files_or_with_half_of_them_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"files\.img"):
        rearm(tmp_path)
    path = write(tmp_path, timer(value_ns=0, interval_ns=S))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BadInput, match=r"files\.img"):
        rearm(tmp_path)
