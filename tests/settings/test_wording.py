"""What a person reads about a value that won't do: words instead of types, what was meant, and the place in the file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kybernate.settings import Settings
from kybernate.settings.wording import all_of, place_of

pytestmark = pytest.mark.unit

MODEL = {"command": "x", "port": 1}


def said(data: object) -> dict[str, str]:
    """By place."""
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(data)
    return {place_of(where): text for where, text in all_of(caught.value, Settings)}


def of_model(**settings: object) -> dict[str, str]:
    found = said({"models": {"m": MODEL | settings}})
    return {place.removeprefix("models.m."): text for place, text in found.items()}


@pytest.mark.parametrize(
    ("settings", "place", "text"),
    [
        ({"port": "many"}, "port", "must be a whole number, not 'many'"),
        ({"port": 0}, "port", "must be at least 1, not 0"),
        ({"port": 70000}, "port", "must be at most 65,535, not 70000"),
        ({"directory": "here"}, "directory", "use an absolute path without '..'"),
        ({"class": "urgent"}, "class", "use 'interactive' or 'batch', not 'urgent'"),
        ({"names": "one"}, "names", "must be a list, such as [a, b], not 'one'"),
        ({"names": None}, "names", "there is nothing here: write a list, such as [a, b], or leave the line out"),
        ({"limits": 5}, "limits", "must be a mapping, lines of `NAME: VALUE` below it, not 5"),
        ({"user": 1000}, "user", "must be a text, not 1000; put it in quotes"),
    ],
)
def test_what_is_wrong_is_said_in_words_with_what_was_given(settings: dict[str, object], place: str, text: str) -> None:
    found = of_model(**settings)
    assert list(found) == [place]
    assert found[place].startswith(text), found


def test_what_is_missing_is_said_to_be() -> None:
    assert said({"models": {"m": {}}}) == {
        "models.m.command": "must be given",
        "models.m.port": "must be given",
    }


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("prot", "port"),
        ("kommand", "command"),
        ("CMD", "command"),
        ("ttl", "idle"),
        ("env", "environment"),
        ("api-keys", None),
    ],
)
def test_a_setting_that_there_is_not_is_answered_with_the_nearest(name: str, meant: str | None) -> None:
    text = of_model(**{name: 1})[name]
    assert text.startswith("no such setting")
    assert f"`{meant}`" in text if meant else "docs/configuration.md lists them" in text


def test_a_mistyped_name_is_not_missing_as_well() -> None:
    found = said({"models": {"m": {"kommand": "x", "port": 1}}})
    assert list(found) == ["models.m.kommand"]


def test_what_another_tool_calls_so_counts_only_where_we_have_it() -> None:
    """`bind` is the activator's `listen`; a model has none."""
    assert "`listen`" in said({"activator": {"bind": "x"}})["activator.bind"]
    assert "`listen`" not in of_model(bind="x")["bind"]


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("Qwen/Qwen3-8B", "; call it `qwen3-8b` and let requests ask for it as ever with `names: [Qwen/Qwen3-8B]`"),
        ("My Model", "; call it `my-model` and let requests ask for it as ever with `names: [My Model]`"),
        ("---", ""),
        ("a\x07b", "; `a-b` would be one"),
    ],
)
def test_a_key_that_can_not_be_a_name_is_answered_with_one_that_can(key: str, advice: str) -> None:
    (text,) = said({"models": {key: MODEL}}).values()
    assert text.endswith("63 at most" + advice), text


def test_one_setting_of_several_kinds_is_told_once() -> None:
    """pydantic tells of each kind that it tried."""
    assert len(of_model(image=5)) == 1


@pytest.mark.parametrize(
    ("where", "place"),
    [
        ((), "the file"),
        (("models", "m", "port"), "models.m.port"),
        (("models", "m", "names", 0), "models.m.names.0"),
        (("models", "[key]"), "models"),
        (("models", "m", "image", "ImageSettings", "name"), "models.m.image.name"),
        (("agent", "x", "function-before[_size(), int]"), "agent.x"),
    ],
)
def test_a_place_is_the_settings_name_without_what_pydantic_adds(where: tuple[str | int, ...], place: str) -> None:
    assert place_of(where) == place


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=200),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    )
)
def test_whatever_stands_there_it_is_settings_or_short_words_at_a_place(value: object) -> None:
    try:
        Settings.model_validate({"models": {"m": MODEL | {"ready": value, "vram": value, "limits": value}}})
    except ValidationError as e:
        found = all_of(e, Settings)
        assert found
        for where, text in found:
            assert place_of(where).startswith("models.m.")
            assert text
            assert "pydantic" not in text
            assert len(text) < 400
