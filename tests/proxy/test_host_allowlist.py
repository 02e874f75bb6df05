"""By which names requests may come: those that are configured and this machine's own, and no name of a foreign page's choice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.proxy.host_allowlist import HostAllowlist, without_port

pytestmark = pytest.mark.unit

OURS = HostAllowlist(["Models.Example"])


@pytest.mark.parametrize(
    "host",
    [
        pytest.param(b"models.example", id="a name of ours"),
        pytest.param(b"MODELS.example:8080", id="in any case, with a port"),
        pytest.param(b"models.example.", id="in full, as DNS has it"),
        pytest.param(b"models.example.:443", id="and with a port"),
        pytest.param(b"localhost", id="this machine"),
        pytest.param(b"localhost:1", id="likewise, with a port"),
        pytest.param(b"127.0.0.1:8080", id="its address"),
        pytest.param(b"[::1]:8080", id="its other address"),
        pytest.param(b"192.0.2.7", id="any address: it is nobody's but ours"),
        pytest.param(b"[2001:db8::1]:80", id="any address of the other kind"),
        pytest.param(b"", id="no name: every browser gives one"),
    ],
)
def test_who_is_answered(host: bytes) -> None:
    assert OURS.allows(host)


@pytest.mark.parametrize(
    "host",
    [
        pytest.param(b"evil.example", id="another name"),
        pytest.param(b"models.example.evil.example", id="a name that begins as ours"),
        pytest.param(b"evilmodels.example", id="a name that ends as ours"),
        pytest.param(b"models.example..", id="two dots are no full name"),
        pytest.param(b"localhost.evil.example:80", id="a name that begins as this machine's"),
        pytest.param(b"127.0.0.1.evil.example", id="a name that begins as an address"),
        pytest.param(b"[evil.example]", id="a name in brackets"),
        pytest.param(b"0x7f000001", id="an address as only some write it"),
        pytest.param(b"\xff", id="no text"),
    ],
)
def test_who_is_not(host: bytes) -> None:
    assert not OURS.allows(host)


def test_without_a_list_every_name_is_answered() -> None:
    assert HostAllowlist(None).allows(b"evil.example")


def test_with_an_empty_list_only_this_machine_is() -> None:
    assert HostAllowlist([]).allows(b"localhost")
    assert not HostAllowlist([]).allows(b"models.example")


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (b"a", b"a"),
        (b"a:80", b"a"),
        (b"[::1]:80", b"[::1]"),
        (b"[::1]", b"[::1]"),
        (b"[::1", b"[::1]"),
        (b":80", b""),
        (b"", b""),
    ],
)
def test_a_port_is_no_part_of_the_name(host: bytes, name: bytes) -> None:
    assert without_port(host) == name


@given(st.binary(max_size=40))
def test_no_host_makes_it_fail(host: bytes) -> None:
    assert isinstance(OURS.allows(host), bool)


@given(st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8}){1,3}", fullmatch=True))
def test_no_other_name_gets_in_whatever_it_looks_like(name: str) -> None:
    assert OURS.allows(name.encode()) is (name == "models.example")
