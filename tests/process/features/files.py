"""Open files: positions, append, deleted ones (also mapped), a deleted directory, a renamed file."""

import mmap
import os

from station import CONTROL, dumped

place = CONTROL / "files"
place.mkdir()
reading = open("/etc/passwd", "rb")
reading.seek(10)
deleted = (CONTROL / "deleted").open("w+b")
deleted.write(b"x" * (3 << 20) + b"end")
deleted.flush()
(CONTROL / "deleted").unlink()
mapped = mmap.mmap(deleted.fileno(), 3 << 20)
scratch = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o600)
os.write(scratch, b"nameless")
dumped()
assert reading.tell() == 10
deleted.seek(3 << 20)
assert deleted.read() == b"end"
mapped[:3] = b"abc"
deleted.seek(0)
assert deleted.read(4) == b"abcx"
assert not (CONTROL / "deleted").exists()
assert os.pread(scratch, 20, 0) == b"nameless"
