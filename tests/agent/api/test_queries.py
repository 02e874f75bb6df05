"""Query parameters and names in paths: what is taken, and what is refused in one line with what would do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from kybernate.agent.api import http
from kybernate.model.api import EventView, GoneView
from kybernate.model.errors import BadInput
from kybernate.model.types import TierName

pytestmark = pytest.mark.unit


def asked(query: str = "", *, name: str = "a") -> Any:
    return make_mocked_request("GET", f"/v1/x{query}", match_info={"name": name})


@pytest.mark.parametrize(
    ("query", "on"),
    [("", False), ("?f", True), ("?f=", True), ("?f=1", True), ("?f=true", True), ("?f=0", False), ("?f=false", False)],
)
def test_a_flag_is_on_or_off(query: str, *, on: bool) -> None:
    assert http.flag(asked(query), "f") is on


@pytest.mark.parametrize("text", ["2", "yes", "True", "on", "-1"])
def test_anything_else_is_no_flag(text: str) -> None:
    with pytest.raises(BadInput, match=f"bad query parameter f='{text}'") as refused:
        http.flag(asked(f"?f={text}"), "f")
    assert refused.value.hint == "use 1 or 0"


@pytest.mark.parametrize(
    ("query", "value"),
    [("", 5.0), ("?n=0", 0.0), ("?n=10", 10.0), ("?n=0.5", 0.5), ("?n=1e1", 10.0), ("?n=%207%20", 7.0)],
)
def test_a_number_is_between_nought_and_the_most(query: str, value: float) -> None:
    assert http.number(asked(query), "n", default=5.0, maximum=10.0) == value


@pytest.mark.parametrize("text", ["-0.1", "10.1", "nan", "inf", "-inf", "many", "", "0x1", "9" * 400])
def test_anything_else_is_refused_with_its_borders(text: str) -> None:
    with pytest.raises(BadInput, match="bad query parameter n=") as refused:
        http.number(asked(f"?n={text}"), "n", default=5.0, maximum=10.0)
    assert refused.value.hint == "use a number from 0 to 10"
    assert len(refused.value.message) < 100


@pytest.mark.parametrize(("query", "tier"), [("", None), ("?tier=nvme", TierName.NVME), ("?tier=ram", TierName.RAM)])
def test_a_tier_is_one_or_none(query: str, tier: TierName | None) -> None:
    assert http.tier(asked(query)) is tier


@pytest.mark.parametrize("text", ["", "NVME", "disk"])
def test_no_other_tier(text: str) -> None:
    with pytest.raises(BadInput, match=f"bad query parameter tier='{text}'"):
        http.tier(asked(f"?tier={text}"))


@pytest.mark.parametrize(("read", "good", "bad"), [(http.name_of, "a-1", "a.1"), (http.snapshot_of, "a.1", "a..1")])
def test_a_name_in_a_path_is_checked(read: Callable[[Any], str], good: str, bad: str) -> None:
    assert read(asked(name=good)) == good
    with pytest.raises(BadInput):
        read(asked(name=bad))


def test_an_event_is_one_line_of_data_whatever_is_in_it() -> None:
    view = EventView(id=1, time=0.0, workload="a", kind="x", text="one\ntwo\r\n\u2028three")
    raw = http.server_event("event", view)
    assert raw.startswith(b"event: event\ndata: {")
    assert raw.endswith(b"}\n\n")
    assert raw.count(b"\n") == 3
    assert b"\r" not in raw
    assert http.server_event("gone", GoneView(workload="a")) == b'event: gone\ndata: {"workload":"a"}\n\n'
