"""Which connections lead out of a workload, and how one is named: decided on lists of sockets."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.process.connections import describe, leading_out, unix_leading_out
from kybernate.process.sock_diag import Address, State, TcpSocket, UnixSocket

pytestmark = pytest.mark.unit

HERE, THERE = ("127.0.0.1", 80), ("127.0.0.1", 4711)


def tcp(local: Address, remote: Address, inode: int, state: State = State.ESTABLISHED) -> TcpSocket:
    return TcpSocket(socket.AF_INET, state, local, remote, inode, b"")


def inodes(found: list[TcpSocket]) -> list[int]:
    return [entry.inode for entry in found]


def test_both_ends_within_are_the_workloads_own_business() -> None:
    assert leading_out([tcp(HERE, THERE, 1), tcp(THERE, HERE, 2)], {1, 2}) == []


def test_an_end_in_another_program_leads_out_even_through_loopback() -> None:
    entries = [tcp(HERE, THERE, 1), tcp(THERE, HERE, 2)]
    assert inodes(leading_out(entries, {1})) == [1]
    assert inodes(leading_out(entries, {2})) == [2]
    assert leading_out(entries, {3}) == [], "none of ours"


def test_an_end_that_is_in_no_list_is_far_away() -> None:
    assert inodes(leading_out([tcp(HERE, ("10.0.0.7", 9), 1)], {1})) == [1]


def test_an_other_end_that_nobody_holds_is_nobodys() -> None:
    """Closed by its process, or waiting to be accepted: CRIU can dump the half that is left."""
    assert leading_out([tcp(HERE, THERE, 1), tcp(THERE, HERE, 0)], {1}) == []


@pytest.mark.parametrize("state", [State.LISTENING, State.CLOSED, State.TIME_WAIT])
def test_a_socket_without_a_connection_leads_nowhere(state: State) -> None:
    assert leading_out([tcp(HERE, ("0.0.0.0", 0), 1, state)], {1}) == []


@pytest.mark.parametrize("state", sorted(set(State) - {State.LISTENING, State.CLOSED, State.TIME_WAIT}))
def test_a_connection_that_begins_or_ends_leads_out_like_any_other(state: State) -> None:
    assert inodes(leading_out([tcp(HERE, THERE, 1, state)], {1})) == [1]


def test_a_listener_with_the_same_addresses_is_no_end() -> None:
    assert inodes(leading_out([tcp(HERE, THERE, 1), tcp(THERE, HERE, 2, State.LISTENING)], {1, 2})) == [1]


PORTS = st.integers(1, 6)
ENDS = st.tuples(st.just("127.0.0.1"), PORTS)


@given(
    connections=st.lists(
        st.tuples(ENDS, ENDS).filter(lambda ends: ends[0] != ends[1]), max_size=6, unique_by=frozenset
    ),
    own=st.sets(st.integers(1, 12)),
)
def test_exactly_those_with_one_end_within_lead_out(connections: list[tuple[Address, Address]], own: set[int]) -> None:
    entries = [entry for i, (a, b) in enumerate(connections) for entry in (tcp(a, b, 2 * i + 1), tcp(b, a, 2 * i + 2))]
    expected = [
        inode
        for i in range(len(connections))
        for inode, other in ((2 * i + 1, 2 * i + 2), (2 * i + 2, 2 * i + 1))
        if inode in own and other not in own
    ]
    assert inodes(leading_out(entries, own)) == expected
    assert leading_out(entries, set()) == []


# -- Unix sockets --------------------------------------------------------------------------------------------------------


def unix(inode: int, peer: int, name: str = "", kind: socket.SocketKind = socket.SOCK_STREAM) -> UnixSocket:
    return UnixSocket(kind, inode, peer, name)


def test_a_unix_socket_leads_out_if_its_peer_is_not_ours() -> None:
    assert [e.inode for e in unix_leading_out([unix(1, 2), unix(2, 1), unix(3, 9)], {1, 2, 3})] == [3]


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(unix(1, 0), id="listens, or waits to be accepted"),
        pytest.param(unix(1, 9, kind=socket.SOCK_DGRAM), id="datagrams go to a path"),
        pytest.param(unix(4, 9), id="somebody else's"),
    ],
)
def test_what_holds_no_connection_of_ours_leads_nowhere(entry: UnixSocket) -> None:
    assert unix_leading_out([entry], {1}) == []


def test_packets_in_order_are_a_connection_too() -> None:
    assert unix_leading_out([unix(1, 9, kind=socket.SOCK_SEQPACKET)], {1})


def test_one_path_may_be_left_out_and_only_by_its_whole_name() -> None:
    entries = [unix(1, 8), unix(8, 1, "/run/kybernate/door"), unix(2, 9), unix(9, 2, "/run/trapdoor")]
    assert [e.inode for e in unix_leading_out(entries, {1, 2}, but="door")] == [2]
    assert [e.inode for e in unix_leading_out(entries, {1, 2})] == [1, 2]


def test_a_list_that_can_be_read_only_once_is_enough() -> None:
    entries = [unix(8, 1, "/run/door"), unix(1, 8)]
    assert unix_leading_out(iter(entries), {1}, but="door") == []


# -- words ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("local", "remote", "words"),
    [
        (("127.0.0.1", 80), ("10.0.0.7", 4711), "127.0.0.1:80 - 10.0.0.7:4711"),
        (("::1", 80), ("fe80::2", 9), "[::1]:80 - [fe80::2]:9"),
        (("0.0.0.0", 0), ("::", 0), "0.0.0.0:0 - [::]:0"),
    ],
)
def test_a_connection_is_named_with_the_workloads_own_end_first(local: Address, remote: Address, words: str) -> None:
    assert describe(tcp(local, remote, 1)) == words
