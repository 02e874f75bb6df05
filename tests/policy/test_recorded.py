"""Traces as files: what a person may leave out, and which nonsense is refused in which line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.errors import BadInput
from kybernate.model.types import GIB, GpuUuid, TierName
from kybernate.policy.costs import PRIORS, Direction
from kybernate.policy.node_state import Class
from kybernate.policy.recorded import TOKENS_PER_S, read_trace, written
from kybernate.policy.simulation import Request, Trace, Workload

from .node_states import GPU, name

pytestmark = pytest.mark.unit

HEAD = '{"capacity": {"GPU-0": "60 GiB"}, "workloads": [{"name": "a", "bytes": {"GPU-0": "10 GiB"}}]}'


def read(tmp_path: Path, *lines: str) -> Trace:
    file = tmp_path / "monday.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return read_trace(file)


def test_what_a_workload_leaves_out_is_what_most_are(tmp_path: Path) -> None:
    trace = read(tmp_path, HEAD)
    (found,) = trace.workloads
    assert (found.klass, found.priority, found.concurrency, found.wanted, found.idle) == (
        Class.INTERACTIVE,
        0,
        8,
        False,
        None,
    )
    assert found.leave == PRIORS[Direction.LEAVE, TierName.RAM].seconds(10 * GIB)
    assert found.come == PRIORS[Direction.COME, TierName.RAM].seconds(10 * GIB)
    assert (trace.name, trace.capacity, trace.requests) == ("monday", {GPU: 60 * GIB}, ())


def test_a_trace_may_have_a_name_of_its_own(tmp_path: Path) -> None:
    assert read(tmp_path, HEAD.replace("{", '{"trace": "tuesday", ', 1)).name == "tuesday"


def test_seconds_count_before_tokens_and_tokens_go_by_a_common_speed(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        HEAD,
        '{"at_s": 0, "model": "a", "tokens": 100, "seconds": 7}',
        '{"at_s": 1, "model": "a", "tokens": 100}',
    )
    assert [request.seconds for request in trace.requests] == [7.0, 100 / TOKENS_PER_S]


def test_its_own_clock_stays_where_the_trace_stands_for_itself(tmp_path: Path) -> None:
    trace = read(
        tmp_path, HEAD, '{"at_s": 50, "model": "a", "seconds": 1}', "", '{"at_s": 20, "model": "a", "seconds": 2}'
    )
    assert [(r.at, r.seconds) for r in trace.requests] == [(20.0, 2.0), (50.0, 1.0)], "in order of time"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        pytest.param(["[]"], r"monday.jsonl:1: no line of a trace", id="a list"),
        pytest.param(["not JSON"], r"monday.jsonl:1: no line of a trace", id="no JSON"),
        pytest.param([HEAD, '{"at_s": 1}'], r":2: .*'tokens' is missing", id="no duration"),
        pytest.param([HEAD, '{"model": "a", "seconds": 1}'], r":2: .*'at_s' is missing", id="no time"),
        pytest.param(
            [HEAD, "", '{"at_s": 1, "seconds": 1}'], r":3: .*'model' is missing", id="the line counts empty ones"
        ),
        pytest.param([HEAD, '{"at_s": 1, "model": "A!", "seconds": 1}'], r":2: .*bad workload name", id="no name"),
        pytest.param(
            [HEAD, '{"at_s": 1, "model": "a", "seconds": -1}'], r":2: .*not negative", id="a negative duration"
        ),
        pytest.param([HEAD, '{"at_s": NaN, "model": "a", "seconds": 1}'], r":2: .*finite", id="no number"),
        pytest.param(
            [HEAD, '{"at_s": 1, "model": "b", "seconds": 1}'], r"is for b, which isn't there", id="a stranger"
        ),
        pytest.param([HEAD.replace("10 GiB", "ten")], r":1: .*is no size", id="no size"),
        pytest.param([HEAD.replace('"a"', '"a", "class": "vip"')], r":1: no line of a trace", id="no class"),
        pytest.param(
            [HEAD.replace("]}", ', {"name": "a", "bytes": {}}]}')], r"two workloads have one name", id="a name twice"
        ),
    ],
)
def test_nonsense_is_refused_with_its_line(tmp_path: Path, lines: list[str], words: str) -> None:
    with pytest.raises(BadInput, match=words) as refused:
        read(tmp_path, *lines)
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("content", [b"", b"\xff\xfe"])
def test_an_empty_or_unreadable_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "t.jsonl"
    file.write_bytes(content)
    with pytest.raises(BadInput, match="trace"):
        read_trace(file)
    with pytest.raises(BadInput, match="can't read the trace"):
        read_trace(tmp_path / "none.jsonl")


WORKLOADS = st.builds(
    Workload,
    name=st.sampled_from([name(text) for text in "abcdef"]),
    bytes=st.dictionaries(st.sampled_from([GPU, GpuUuid("GPU-1")]), st.integers(0, 1 << 40)),
    leave=st.floats(0, 100),
    come=st.floats(0, 100),
    klass=st.sampled_from(Class),
    priority=st.integers(-10, 10),
    concurrency=st.integers(1, 100),
    wanted=st.booleans(),
    idle=st.none() | st.floats(0, 1e6),
)


@given(
    workloads=st.lists(WORKLOADS, min_size=1, max_size=4, unique_by=lambda workload: workload.name),
    times=st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e3)), max_size=8),
)
def test_any_trace_is_read_as_it_was_written(
    workloads: list[Workload], times: list[tuple[float, float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    requests = tuple(Request(at, workloads[0].name, seconds) for at, seconds in sorted(times))
    trace = Trace("any", {GPU: 1 << 40}, tuple(workloads), requests)
    file = tmp_path_factory.mktemp("trace") / "any.jsonl"
    file.write_text("\n".join(written(trace)))
    assert read_trace(file) == replace(trace, requests=tuple(sorted(requests, key=lambda r: r.at)))
