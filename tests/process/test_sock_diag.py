"""What the kernel says of sockets, read from answers made by hand: struct inet_diag_msg, struct unix_diag_msg, nlattr."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.process.sock_diag import State, TcpSocket, UnixSocket, destroy, tcp_sockets, unix_sockets

pytestmark = pytest.mark.unit

BY_FAMILY, DESTROY, ERROR, DONE = 20, 21, 2, 3


@dataclass
class Kernel:
    """The other end of a netlink socket, which has its answers ready."""

    ours: socket.socket
    theirs: socket.socket
    asked: list[bytes] = field(default_factory=list)

    def answers(self, *packets: bytes) -> None:
        for packet in packets:
            self.theirs.send(packet)

    def questions(self) -> list[bytes]:
        self.theirs.setblocking(False)
        found = []
        while True:
            try:
                found.append(self.theirs.recv(1 << 16))
            except BlockingIOError:
                return found


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(10)
    with ours, theirs:
        yield Kernel(ours, theirs)


def message(kind: int, body: bytes, *, padded: bool = True) -> bytes:
    raw = struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body
    return raw + bytes(-len(raw) % 4 if padded else 0)


def attribute(kind: int, value: bytes, *, padded: bool = True) -> bytes:
    raw = struct.pack("=HH", 4 + len(value), kind) + value
    return raw + bytes(-len(raw) % 4 if padded else 0)


def address(text: str) -> bytes:
    return ipaddress.ip_address(text).packed.ljust(16, b"\0")


def tcp(
    local: str,
    local_port: int,
    remote: str,
    remote_port: int,
    *,
    family: int = socket.AF_INET,
    state: State = State.ESTABLISHED,
    inode: int = 7,
    attributes: bytes = b"",
    cookie: bytes = bytes(12),
) -> bytes:
    identity = struct.pack("!HH", local_port, remote_port) + address(local) + address(remote) + cookie
    head = struct.pack("=BBBB48sIIIII", family, state, 0, 0, identity, 0, 0, 0, 1000, inode)
    return message(BY_FAMILY, head + attributes)


def unix(
    inode: int, *, kind: socket.SocketKind = socket.SOCK_STREAM, attributes: bytes = b"", padded: bool = True
) -> bytes:
    head = struct.pack("=BBBBI8s", socket.AF_UNIX, kind, 1, 0, inode, bytes(8))
    return message(BY_FAMILY, head + attributes, padded=padded)


NO_MORE = message(DONE, bytes(4))


def error(number: int) -> bytes:
    return message(ERROR, struct.pack("=i", -number) + bytes(16))


# -- TCP -----------------------------------------------------------------------------------------------------------------


def test_both_families_are_asked_for_one_after_the_other(kernel: Kernel) -> None:
    kernel.answers(tcp("127.0.0.1", 80, "10.0.0.7", 4711), NO_MORE)
    kernel.answers(tcp("::1", 8080, "::2", 9, family=socket.AF_INET6, inode=8), NO_MORE)
    four, six = tcp_sockets(kernel.ours)
    assert (four.local, four.remote, four.inode, four.family) == (
        ("127.0.0.1", 80),
        ("10.0.0.7", 4711),
        7,
        socket.AF_INET,
    )
    assert (six.local, six.remote, six.inode, six.family) == (("::1", 8080), ("::2", 9), 8, socket.AF_INET6)
    questions = kernel.questions()
    assert [question[16] for question in questions] == [socket.AF_INET, socket.AF_INET6]
    for question in questions:
        length, kind, flags = struct.unpack_from("=IHH", question)
        assert (length, kind, flags) == (len(question), BY_FAMILY, 0x301), "a request for all of them"
        assert len(question) == 16 + 56, "struct inet_diag_req_v2"
        assert question[17] == socket.IPPROTO_TCP
        assert question[20:24] == b"\xff" * 4, "in any state"


def test_an_address_of_the_other_family_reads_as_it_is_written_there(kernel: Kernel) -> None:
    """Else a connection of an IPv6 socket with an IPv4 one would have two ends that don't meet."""
    kernel.answers(NO_MORE, tcp("::ffff:127.0.0.1", 1, "::ffff:10.1.2.3", 2, family=socket.AF_INET6), NO_MORE)
    (found,) = tcp_sockets(kernel.ours)
    assert (found.local, found.remote) == (("127.0.0.1", 1), ("10.1.2.3", 2))


@pytest.mark.parametrize("state", list(State))
def test_each_state_of_the_kernel_is_known(kernel: Kernel, state: State) -> None:
    kernel.answers(tcp("1.2.3.4", 1, "5.6.7.8", 2, state=state), NO_MORE, NO_MORE)
    (found,) = tcp_sockets(kernel.ours)
    assert found.state is state


def test_unsent_bytes_are_of_tcp_info_and_none_where_the_kernel_tells_less(kernel: Kernel) -> None:
    info = bytearray(232)
    info[144:148] = (123_456).to_bytes(4, "little")
    known = attribute(8, b"\1") + attribute(2, bytes(info))
    old = attribute(2, bytes(100))
    kernel.answers(
        tcp("1.1.1.1", 1, "2.2.2.2", 2, attributes=known)
        + tcp("1.1.1.1", 3, "2.2.2.2", 4, attributes=old)
        + tcp("1.1.1.1", 5, "2.2.2.2", 6),
        NO_MORE,
        NO_MORE,
    )
    assert [entry.unsent for entry in tcp_sockets(kernel.ours)] == [123_456, 0, 0]


def test_the_kernels_own_name_of_a_socket_is_what_it_is_closed_by(kernel: Kernel) -> None:
    kernel.answers(tcp("1.2.3.4", 1, "5.6.7.8", 2, state=State.CLOSE_WAIT, cookie=b"interfcookie"), NO_MORE, NO_MORE)
    (found,) = tcp_sockets(kernel.ours)
    kernel.questions()
    kernel.answers(error(0))
    destroy(kernel.ours, found)
    (asked,) = kernel.questions()
    _, kind, flags = struct.unpack_from("=IHH", asked)
    assert (kind, flags) == (DESTROY, 5), "a request that is acknowledged"
    family, protocol, _, _, states = struct.unpack_from("=BBBBI", asked, 16)
    assert (family, protocol, states) == (socket.AF_INET, socket.IPPROTO_TCP, 1 << State.CLOSE_WAIT)
    assert asked[24:] == found.identity
    assert found.identity.endswith(b"interfcookie")


# -- Unix sockets --------------------------------------------------------------------------------------------------------


def test_a_unix_socket_has_its_peer_and_its_path(kernel: Kernel) -> None:
    kernel.answers(
        unix(5, attributes=attribute(0, b"/run/a.sock\0") + attribute(2, (6).to_bytes(4, "little"))),
        unix(6, kind=socket.SOCK_SEQPACKET) + unix(9, kind=socket.SOCK_DGRAM),
        NO_MORE,
    )
    assert list(unix_sockets(kernel.ours)) == [
        UnixSocket(socket.SOCK_STREAM, 5, 6, "/run/a.sock"),
        UnixSocket(socket.SOCK_SEQPACKET, 6, 0),
        UnixSocket(socket.SOCK_DGRAM, 9, 0),
    ]
    (asked,) = kernel.questions()
    assert len(asked) == 16 + 24, "struct unix_diag_req"
    assert asked[16] == socket.AF_UNIX


def test_a_name_that_is_no_text_or_of_the_abstract_kind_does_no_harm(kernel: Kernel) -> None:
    kernel.answers(
        unix(1, attributes=attribute(0, b"\xff\xfe")), unix(2, attributes=attribute(0, b"\0abstract")), NO_MORE
    )
    assert [entry.name for entry in unix_sockets(kernel.ours)] == ["��", "\0abstract"]


# -- framing -------------------------------------------------------------------------------------------------------------


@given(
    names=st.lists(st.binary(min_size=1, max_size=30).filter(lambda name: not name.endswith(b"\0")), max_size=8),
    cut=st.integers(0, 8),
)
def test_messages_are_found_wherever_one_packet_ends_and_whatever_their_length(names: list[bytes], cut: int) -> None:
    """Each begins at a multiple of four bytes; the last of a packet may lack its padding."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(10)
        made = [unix(i, attributes=attribute(0, name, padded=False)) for i, name in enumerate(names)]
        for packet in (made[:cut], made[cut:]):
            if packet:
                theirs.send(b"".join(packet))
        theirs.send(NO_MORE)
        found = list(unix_sockets(ours))
    assert [(entry.inode, entry.name) for entry in found] == [
        (i, name.decode(errors="replace")) for i, name in enumerate(names)
    ]


def test_what_lies_behind_the_end_belongs_to_nobody(kernel: Kernel) -> None:
    kernel.answers(unix(1) + NO_MORE + unix(2))
    assert [entry.inode for entry in unix_sockets(kernel.ours)] == [1]


@pytest.mark.parametrize("length", [0, 1, 3])
def test_an_attribute_that_is_shorter_than_its_head_ends_the_list_and_not_the_program(
    kernel: Kernel, length: int
) -> None:
    kernel.answers(unix(1, attributes=struct.pack("=HH", length, 0) + attribute(2, (6).to_bytes(4, "little"))), NO_MORE)
    (found,) = unix_sockets(kernel.ours)
    assert found.peer == 0


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL])
def test_an_error_of_the_kernel_is_raised_by_its_number(kernel: Kernel, number: int) -> None:
    kernel.answers(error(number))
    with pytest.raises(OSError) as caught:
        list(unix_sockets(kernel.ours))
    assert caught.value.errno == number


VICTIM = TcpSocket(socket.AF_INET, State.ESTABLISHED, ("1.2.3.4", 1), ("5.6.7.8", 2), 7, bytes(48))


def test_closing_what_is_gone_is_done_and_what_may_not_be_closed_is_said(kernel: Kernel) -> None:
    kernel.answers(error(errno.ENOENT))
    destroy(kernel.ours, VICTIM)
    kernel.answers(error(errno.EPERM))
    with pytest.raises(PermissionError):
        destroy(kernel.ours, VICTIM)
