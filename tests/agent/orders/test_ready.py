"""When a workload is ready: what is asked for, and what is said when it isn't. Asking itself: test_growing.py, test_starting.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.agent.orders.ready import EndedUnready, Found, HttpPath, NotReady, for_everybody, http_path
from kybernate.model.errors import BadInput, Busy, WorkloadLost

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("8000/health", HttpPath("127.0.0.1", 8000, "/health")),
        (":8000/health", HttpPath("127.0.0.1", 8000, "/health")),
        ("8000", HttpPath("127.0.0.1", 8000, "/")),
        ("http://10.0.0.1:80", HttpPath("10.0.0.1", 80, "/")),
        ("http://[::1]:9/x", HttpPath("::1", 9, "/x")),
        ("1/a?b=c&d", HttpPath("127.0.0.1", 1, "/a?b=c&d")),
        ("65535/", HttpPath("127.0.0.1", 65535, "/")),
        ("http://localhost:80/a#b", HttpPath("localhost", 80, "/a")),
    ],
)
def test_a_path_is_a_port_and_what_is_behind_it_or_an_address(text: str, path: HttpPath) -> None:
    assert http_path(text) == path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/health",
        "health",
        "0/x",
        "65536/x",
        "-1/x",
        "https://h:1/x",
        "http://h/x",
        "http://user:secret@h:1/x",
        "8000/a b",
        "8000/a\r\nHost: x",
        "8000/ä",
        "ftp://h:1",
    ],
)
def test_what_can_not_be_asked_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadInput, match="is no path to ask") as caught:
        http_path(text)
    assert caught.value.hint == "give PORT/PATH or http://HOST:PORT/PATH"


def test_a_refusal_repeats_only_the_beginning() -> None:
    with pytest.raises(BadInput) as caught:
        http_path("x" * 10_000)
    assert len(caught.value.message) < 150


@given(text=st.text(max_size=40))
def test_any_text_is_a_path_that_can_be_sent_or_bad_input(text: str) -> None:
    try:
        found = http_path(text)
    except BadInput:
        return
    assert 1 <= found.port <= 65535
    assert found.path.startswith("/")
    assert all(" " < c <= "~" for c in found.path + found.host)


# -- what is said, and to whom -------------------------------------------------------------------------------------------


def test_one_that_was_not_ready_in_time_says_what_was_found_last() -> None:
    error = NotReady("m", timeout_s=90, found=Found("curl ends with status 7", "secret of its owner"))
    assert isinstance(error, Busy), "another moment may mend it"
    assert error.message == "workload m was not ready within 90 s: curl ends with status 7: secret of its owner"
    assert for_everybody(error) == "workload m was not ready within 90 s: curl ends with status 7"
    assert for_everybody(NotReady("m", timeout_s=0.5, found=Found("x"))) == "workload m was not ready within 0.5 s: x"


def test_one_that_ended_says_its_status_and_last_words_to_its_owner_alone(tmp_path: Path) -> None:
    silent = EndedUnready("m", status=3, run_directory=tmp_path)
    assert isinstance(silent, WorkloadLost)
    assert silent.message == "workload m ended before it was ready, with status 3, and said nothing"
    assert for_everybody(silent) == "workload m ended before it was ready, with status 3"
    assert EndedUnready("m", status=None, run_directory=tmp_path).plain == "workload m ended before it was ready"


def test_any_other_error_is_for_everybody_as_it_is() -> None:
    assert for_everybody(Busy("no room")) == "no room"
