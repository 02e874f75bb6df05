"""Pipes and a named pipe with data in them, one shared with a child, one whose other end is closed."""

import fcntl
import os

from station import PLACE, dumped

full = os.pipe()
fcntl.fcntl(full[1], fcntl.F_SETPIPE_SZ, 1 << 20)
os.write(full[1], b"data" * 100_000)
closed = os.pipe()
os.write(closed[1], b"last")
os.close(closed[1])
os.mkfifo(PLACE / "fifo")
fifo = os.open(PLACE / "fifo", os.O_RDWR)
os.write(fifo, b"fifo")
shared = os.pipe()
if os.fork() == 0:
    dumped()
    os.write(shared[1], b"child")
    os._exit(0)
dumped()
assert fcntl.fcntl(full[1], fcntl.F_GETPIPE_SZ) == 1 << 20
os.close(full[1])
with open(full[0], "rb") as file:
    assert file.read() == b"data" * 100_000
with open(closed[0], "rb") as file:
    assert file.read() == b"last"
assert os.read(fifo, 10) == b"fifo"
assert os.read(shared[0], 10) == b"child"
assert os.wait()[1] == 0
