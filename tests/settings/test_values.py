"""What settings are made of: each kind of value with what it takes, what it makes of it, and what it refuses in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from kybernate.model.types import CHUNK_BYTES, GIB, MIB
from kybernate.settings import values

pytestmark = pytest.mark.unit


def words(call: Any, value: Any) -> str:
    with pytest.raises(ValueError) as caught:
        call(value)
    return str(caught.value)


def refusal(kind: Any, value: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value)
    (error,) = caught.value.errors()[:1]
    return str(error["msg"])


# -- numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "bytes_"), [(4 * MIB, 4 * MIB), ("4MiB", 4 * MIB), ("1GiB", GIB), (0, 0)])
def test_a_size_of_whole_chunks_is_bytes(value: int | str, bytes_: int) -> None:
    assert values.whole_chunks(value) == bytes_


@pytest.mark.parametrize("value", [1, CHUNK_BYTES - 1, CHUNK_BYTES + 1, "3MiB"])
def test_a_part_of_a_chunk_is_none(value: int | str) -> None:
    assert words(values.whole_chunks, value) == "must be a multiple of 2 MiB"


@pytest.mark.parametrize(("value", "sizes"), [("1GiB", (GIB,)), (5, (5,)), (["1GiB", 7], (GIB, 7)), ((1, 2), (1, 2))])
def test_one_size_or_one_for_each_gpu(value: Any, sizes: tuple[int, ...]) -> None:
    assert TypeAdapter(values.Sizes).validate_python(value) == sizes


def test_no_sizes_and_more_than_64_are_refused() -> None:
    assert refusal(values.Sizes, [])
    assert len(TypeAdapter(values.Sizes).validate_python([1] * 64)) == 64
    assert refusal(values.Sizes, [1] * 65)


@pytest.mark.parametrize("value", [True, False])
def test_true_is_no_number_though_python_has_it_as_one(value: bool) -> None:
    assert words(values.NO_FLAG.func, value) == f"{str(value).lower()} is no number"


@pytest.mark.parametrize(("value", "seconds"), [(90, 90.0), ("90", 90.0), ("1h30m", 5400.0), ("250ms", 0.25), (0, 0.0)])
def test_a_time_has_units_or_is_seconds(value: Any, seconds: float) -> None:
    assert TypeAdapter(values.Duration).validate_python(value) == pytest.approx(seconds)


def test_ten_years_are_the_longest() -> None:
    years = 10 * 365 * 86400
    assert TypeAdapter(values.Duration).validate_python(years) == years
    assert refusal(values.Duration, years + 1)


@pytest.mark.parametrize("value", ["off", False, None])
def test_off_is_no_time_as_a_word_and_as_yaml_reads_it(value: Any) -> None:
    assert TypeAdapter(values.DurationOrOff).validate_python(value) is None


@pytest.mark.parametrize("value", [0, -1, "on", True])
def test_a_time_that_may_be_off_is_else_above_nought(value: Any) -> None:
    assert refusal(values.DurationOrOff, value)


# -- names and places ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "0", "a-b", "a" * 63, "x" + "-" * 61 + "y"])
def test_a_workloads_name_is_a_dns_label(name: str) -> None:
    assert TypeAdapter(values.WorkloadKey).validate_python(name) == name


@pytest.mark.parametrize("name", ["", "-", "-a", "a-", "A", "a_b", "a.b", "a" * 64, "ä", "a\n", "a b"])
def test_anything_else_is_none(name: str) -> None:
    assert refusal(values.WorkloadKey, name)


@pytest.mark.parametrize(
    "url", ["s3://bucket", "s3://bucket/prefix", "gs://b/p/q", "az://account/container/p", "azure://a/b", "file:///d"]
)
def test_a_bucket_is_one_of_these(url: str) -> None:
    assert values.tier_url(url) == url


@pytest.mark.parametrize(
    "url", ["", "bucket", "s3:/b", "s3://", "http://b", "file://d", "file:///", "S3://b", "s3://?x"]
)
def test_any_other_address_is_answered_with_the_kinds_there_are(url: str) -> None:
    assert "s3://BUCKET/PREFIX" in words(values.tier_url, url)


@pytest.mark.parametrize("url", ["http://h:1", "https://h", "http://[::1]:8080/x"])
def test_a_server_has_a_scheme_and_a_host(url: str) -> None:
    assert values.server_url(url) == url


@pytest.mark.parametrize("url", ["h:1", "ftp://h", "http://", "http:///x", "//h"])
def test_a_server_without_them_is_none(url: str) -> None:
    assert words(values.server_url, url) == "use http://HOST:PORT or https://HOST:PORT"


@pytest.mark.parametrize("url", ["http://user:secret@h", "https://token@h:1/x"])
def test_an_address_with_a_password_is_refused_and_not_repeated(url: str) -> None:
    said = words(values.server_url, url)
    assert said.startswith("no user or password in an address")
    assert "secret" not in said


def test_an_at_sign_behind_the_host_is_no_password() -> None:
    assert values.server_url("http://h/a@b") == "http://h/a@b"


@pytest.mark.parametrize(
    ("path", "good"), [("/a/b", True), ("/", True), ("a", False), ("/a/../b", False), ("./a", False)]
)
def test_a_path_is_absolute_and_leads_where_it_seems_to(path: str, *, good: bool) -> None:
    if good:
        assert values.absolute(Path(path)) == Path(path)
    else:
        assert words(values.absolute, Path(path)) == "use an absolute path without '..'"


# -- commands and environments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "argv"),
    [
        ("serve --name 'two words'", ("serve", "--name", "two words")),
        (["serve", 8000, 1.5], ("serve", "8000", "1.5")),
        (["two words"], ("two words",)),
        ("a $HOME ; b | c", ("a", "$HOME", ";", "b", "|", "c")),
        (["", "x"], ("", "x")),
    ],
)
def test_a_command_is_words_split_as_a_shell_would_without_one(value: Any, argv: tuple[str, ...]) -> None:
    assert TypeAdapter(values.Command).validate_python(value) == argv


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "no command to run"),
        ("   ", "no command to run"),
        ([], "no command to run"),
        ("a 'b", "no command line"),
        (["a\0b"], "a command holds no NUL byte"),
        (["a", True], "a command is a list of words, or one text"),
        (["a", None], "a command is a list of words, or one text"),
        (["a", ["b"]], "a command is a list of words, or one text"),
        (["a", {"b": 1}], "a command is a list of words, or one text"),
        (7, "a command is a list of words, or one text"),
        ({"a": 1}, "a command is a list of words, or one text"),
    ],
)
def test_what_is_no_command_is_said_to_be_none(value: Any, said: str) -> None:
    assert said in refusal(values.Command, value)


@given(
    argv=st.lists(
        st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])), min_size=1, max_size=6
    )
)
def test_a_list_of_words_is_taken_word_by_word(argv: list[str]) -> None:
    assert TypeAdapter(values.Command).validate_python(argv) == tuple(argv)


def test_numbers_in_an_environment_mean_their_text_and_flags_mean_nothing() -> None:
    assert TypeAdapter(values.Environment).validate_python({"A": 8000, "B": 1.5, "C": ""}) == {
        "A": "8000",
        "B": "1.5",
        "C": "",
    }
    for bad in ({"A": True}, {"A": None}, {"A=B": "x"}, {"": "x"}, {"A": "x\0"}, {"A\0": "x"}, ["A=B"]):
        assert refusal(values.Environment, bad)


# -- HTTP ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/health", "/a/b-c.d~e%20", "/[x]"])
def test_a_path_of_an_url_is_what_can_be_sent(path: str) -> None:
    assert values.url_path(path) == path


@pytest.mark.parametrize("path", ["", "health", "/a b", "/a?b", "/a#b", "/ä", "/a\n", "/a\0"])
def test_what_can_not_be_sent_is_no_path(path: str) -> None:
    assert words(values.url_path, path) == "use a path such as /health"


def test_a_prefix_has_no_slash_at_its_end_and_can_not_take_everything() -> None:
    assert values.path_prefix("/chat/") == values.path_prefix("/chat") == "/chat"
    for everything in ("/", "//"):
        assert "would take every request" in words(values.path_prefix, everything)


@pytest.mark.parametrize(
    ("host", "name"), [("Chat.Example.org", "chat.example.org"), ("a", "a"), ("10.0.0.1", "10.0.0.1")]
)
def test_a_hosts_name_is_in_small_letters(host: str, name: str) -> None:
    assert values.host_name(host) == name


@pytest.mark.parametrize("host", ["", "a:80", "a/b", "-a", "a-", ".a", "a.", "a b", "ä.de", "a" * 254, "*.example.org"])
def test_anything_else_is_no_host(host: str) -> None:
    assert words(values.host_name, host) == "use a host name such as chat.example.org, without a port"


@pytest.mark.parametrize(
    ("given_", "origin"),
    [
        ("https://Chat.Example.org", "https://chat.example.org"),
        ("https://a:443", "https://a"),
        ("http://a:80", "http://a"),
        ("http://a:443", "http://a:443"),
        ("https://a:80", "https://a:80"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("chrome-extension://abc", "chrome-extension://abc"),
    ],
)
def test_an_origin_is_as_a_browser_sends_it(given_: str, origin: str) -> None:
    assert values.origin(given_) == origin


@pytest.mark.parametrize(
    "text", ["", "a", "https://", "https://a/", "https://a/b", "https://u@a", "https://a,b", "https://ä", "null"]
)
def test_what_no_browser_sends_is_no_origin(text: str) -> None:
    assert words(values.origin, text).startswith("use an origin such as")


@pytest.mark.parametrize(
    ("text", "good"),
    [("gpt-4o", True), ("Qwen/Qwen3 8B", True), ("a" * 200, True), ("", False), ("a" * 201, False), ("a\n", False)],
)
def test_a_name_that_requests_use_is_printable_and_not_endless(text: str, *, good: bool) -> None:
    if good:
        assert values.model_alias(text) == text
    else:
        assert words(values.model_alias, text) == "use 1 to 200 printable characters"


@pytest.mark.parametrize("text", ["127.0.0.1:80", "[::1]:8080", "0.0.0.0:1"])
def test_where_to_listen_has_a_port(text: str) -> None:
    assert values.listen_address(text) == text


@pytest.mark.parametrize("value", ["", "8080", 8080, None, "127.0.0.1", "a:0:1"])
def test_an_address_without_one_is_refused(value: Any) -> None:
    assert words(values.listen_address, value)
