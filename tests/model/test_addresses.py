"""HOST:PORT as people write it, and whether only this machine gets there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.addresses import host_and_port, on_loopback, resolved
from kybernate.model.errors import BadInput

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("127.0.0.1:8080", ("127.0.0.1", 8080), id="IPv4"),
        pytest.param("[::1]:8080", ("::1", 8080), id="IPv6 in brackets, which go"),
        pytest.param("node-1.example:443", ("node-1.example", 443), id="a name"),
        pytest.param("0.0.0.0:0", ("0.0.0.0", 0), id="any free port"),
        pytest.param("h:65535", ("h", 65535), id="the last port"),
        pytest.param("h:00080", ("h", 80), id="leading zeros"),
    ],
)
def test_host_and_port_are_what_stands_on_both_sides_of_the_last_colon(text: str, found: tuple[str, int]) -> None:
    assert host_and_port(text) == found


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("8080", id="a port alone"),
        pytest.param(":8080", id="no host"),
        pytest.param("[]:8080", id="no host in brackets"),
        pytest.param("::1:8080", id="IPv6 without brackets could end anywhere"),
        pytest.param("host:", id="no port"),
        pytest.param("host:http", id="a service's name"),
        pytest.param("host:-1", id="negative"),
        pytest.param("host:８０", id="digits that aren't ASCII"),
        pytest.param("host:80 ", id="a space"),
    ],
)
def test_what_is_no_address_is_refused_with_two_that_are(text: str) -> None:
    with pytest.raises(BadInput, match=r"use HOST:PORT, such as 127.0.0.1:8080 or \[::1\]:8080"):
        host_and_port(text)


@pytest.mark.parametrize("text", ["h:65536", "h:000080", "h:99999999999999999999"])
def test_a_port_beyond_the_last_one_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="a port is at most 65535"):
        host_and_port(text)


@given(st.ip_addresses(), st.integers(0, 65535))
def test_every_address_comes_back_as_it_was_written(address: object, port: int) -> None:
    host = str(address)
    written = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    assert host_and_port(written) == (host, port)


@pytest.mark.parametrize(
    ("listen", "alone"),
    [
        ("127.0.0.1:1", True),
        ("127.255.255.254:1", True),
        ("[::1]:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("192.0.2.1:1", False),
    ],
)
def test_only_loopback_is_this_machine_alone(listen: str, alone: bool) -> None:
    assert on_loopback(listen) is alone


def test_an_address_is_resolved_to_host_and_port_whatever_its_family_adds() -> None:
    assert resolved("[::1]:80")[4] == ("::1", 80), "without the scope and flow that IPv6 has beside them"
