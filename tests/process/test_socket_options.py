"""Options of sockets that CRIU leaves out: which mean something for which kind, read in one life and set in the next."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from kybernate.process.socket_options import apply, options_of, values

pytestmark = pytest.mark.unit

KINDS = {
    "tcp": (socket.AF_INET, socket.SOCK_STREAM),
    "tcp6": (socket.AF_INET6, socket.SOCK_STREAM),
    "udp": (socket.AF_INET, socket.SOCK_DGRAM),
    "udp6": (socket.AF_INET6, socket.SOCK_DGRAM),
    "unix": (socket.AF_UNIX, socket.SOCK_STREAM),
}


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(kind: str) -> socket.socket:
    family, type_ = KINDS[kind]
    try:
        return socket.socket(family, type_, socket.IPPROTO_TCP if kind.startswith("tcp") else 0)
    except OSError:
        pytest.skip(f"this kernel has no {kind}")


@pytest.fixture
def sock(kind: str) -> Iterator[socket.socket]:
    with make(kind) as made:
        yield made


def names(sock: socket.socket) -> list[str]:
    return [option.name for option in options_of(sock)]


def test_no_option_is_named_twice(sock: socket.socket) -> None:
    found = names(sock)
    assert len(found) == len(set(found))
    assert len({(option.level, option.number) for option in options_of(sock)}) == len(found)


@pytest.mark.parametrize(
    ("option", "kinds"),
    [
        ("SO_TIMESTAMP", {"tcp", "tcp6", "udp", "udp6", "unix"}),
        ("SO_PEEK_OFF", {"udp", "udp6", "unix"}),
        ("IP_RECVTTL", {"tcp", "tcp6", "udp", "udp6"}),
        ("IPV6_TCLASS", {"tcp6", "udp6"}),
        ("TCP_CONGESTION", {"tcp", "tcp6"}),
        ("UDP_SEGMENT", {"udp", "udp6"}),
        ("IP_MULTICAST_TTL", {"udp", "udp6"}),
        ("IPV6_MULTICAST_LOOP", {"udp6"}),
        ("TCP_FASTOPEN", set()),
    ],
)
def test_an_option_is_looked_at_where_it_means_something(option: str, kinds: set[str]) -> None:
    """Fast open is a listener's, and none of these listens."""
    found = set()
    for kind in KINDS:
        with make(kind) as sock:
            if option in names(sock):
                found.add(kind)
    assert found == kinds


def test_of_a_netlink_socket_nothing_is_looked_at() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as sock:
        assert options_of(sock) == ()
        assert values(sock) == {}
        assert apply(sock, {"SO_TIMESTAMP": 1}) == []


def test_what_is_as_it_begins_needs_no_setting_in_the_next_life(kind: str, sock: socket.socket) -> None:
    with make(kind) as following:
        before = values(following)
        assert apply(following, values(sock)) == []
        assert values(following) == before


def test_what_was_set_is_set_again_and_the_rest_stays_as_it_begins() -> None:
    with make("tcp") as sock, make("tcp") as following:
        sock.setsockopt(socket.SOL_SOCKET, 29, 1)
        sock.setsockopt(socket.IPPROTO_TCP, 18, 12_345)
        defaults, wanted = values(following), values(sock)
        differing = {name for name in wanted if wanted[name] != defaults.get(name)}
        assert differing == {"SO_TIMESTAMP", "TCP_USER_TIMEOUT"}
        assert apply(following, wanted) == []
        assert values(following) == wanted
        assert following.getsockopt(socket.IPPROTO_TCP, 18) == 12_345, "milliseconds"


def test_an_option_that_is_a_name_is_text_without_the_kernels_padding() -> None:
    with make("tcp") as sock:
        congestion = values(sock).get("TCP_CONGESTION")
        assert isinstance(congestion, str)
        assert congestion
        assert "\0" not in congestion
        assert apply(sock, {"TCP_CONGESTION": congestion}) == []


def test_what_this_kernel_refuses_is_named_and_the_others_are_set_all_the_same() -> None:
    with make("tcp") as sock:
        failed = apply(sock, {"TCP_CONGESTION": "of-another-kernel", "TCP_USER_TIMEOUT": 777, "IP_MINTTL": 100_000})
        assert sorted(failed) == ["IP_MINTTL", "TCP_CONGESTION"]
        assert sock.getsockopt(socket.IPPROTO_TCP, 18) == 777


def test_an_option_of_another_kind_or_of_a_later_version_is_passed_over() -> None:
    with make("udp") as sock:
        before = values(sock)
        assert apply(sock, {"TCP_USER_TIMEOUT": 5, "SO_FROM_THE_FUTURE": 1}) == []
        assert values(sock) == before
