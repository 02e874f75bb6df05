"""Unix sockets: pairs with data in them, a listening one by path (in the run directory), an abstract one."""

import os
import socket

from station import CONTROL, dumped

pairs = [
    socket.socketpair(socket.AF_UNIX, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
]
for one, _ in pairs:
    one.send(b"queued")
path = str(CONTROL / "1000.sock")
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.bind(path)
server.listen()
inside = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
inside.connect(path)
accepted = server.accept()[0]
accepted.send(b"hello")
abstract = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
abstract.bind("\0kybernate-test")
abstract.listen()
dumped()
for one, other in pairs:
    assert other.recv(100) == b"queued"
    other.send(b"back")
    assert one.recv(100) == b"back"
assert inside.recv(100) == b"hello"
inside.send(b"answer")
assert accepted.recv(100) == b"answer"
again = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
again.connect(path)
new = server.accept()[0]
null = os.open("/dev/null", os.O_RDONLY)
socket.send_fds(again, [b"fd"], [null])
_, descriptors, _, _ = socket.recv_fds(new, 10, 1)
assert os.readlink(f"/proc/self/fd/{descriptors[0]}") == "/dev/null"
client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
client.connect("\0kybernate-test")
abstract.accept()
