"""kybernate.yaml as a person writes it: times with units, all errors at once, templates, names that aren't keys."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import pytest

from kybernate.model.errors import BadInput
from kybernate.node.settings import Settings, parse
from kybernate.node.settings.values import Section

PROGRAM = "command: x, port: 1"


def times(section: type[Section], *place: str) -> Iterator[tuple[str, ...]]:
    """Every setting that says of itself that it is in seconds."""
    for name, field in section.model_fields.items():
        here = (*place, field.alias or name)
        inner: Any = field.annotation
        if typing.get_origin(inner) is dict:
            inner, here = typing.get_args(inner)[1], (*here, "one")
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from times(inner, *here)
        elif (field.description or "").startswith("Seconds"):
            yield here


EVERY_TIME = [".".join(place) for place in times(Settings)]


def at(place: str, value: str) -> str:
    """A file that sets only this."""
    said = value
    for word in reversed(place.split(".")):
        more = f", {PROGRAM}" if word == "one" and place.startswith("models") else ""
        more = ", command: x" if word == "one" and place.startswith("jobs") else more
        said = f"{{{word}: {said}}}" if word != "one" else f"{{one: {{{said[1:-1]}{more}}}}}"
    return said


def test_there_are_times_in_every_section() -> None:
    assert {place.partition(".")[0] for place in EVERY_TIME} == {"agent", "models", "jobs", "activator", "serving"}
    assert len(EVERY_TIME) >= 20


@pytest.mark.parametrize("place", EVERY_TIME)
def test_every_time_takes_units(place: str) -> None:
    assert parse(at(place, "1m30s"), origin="k.yaml") == parse(at(place, "90"), origin="k.yaml")
    with pytest.raises(BadInput, match=f"{place}.*'soon' is no time.*10m or 1h30m"):
        parse(at(place, "soon"), origin="k.yaml")
