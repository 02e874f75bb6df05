"""Open files: positions, append, deleted ones (also mapped), one renamed; a tree of files."""

import mmap
import os

from station import PLACE, dumped

(PLACE / "old").write_bytes(b"old content")
renamed = (PLACE / "old").open("rb")
(PLACE / "old").rename(PLACE / "new")
appended = (PLACE / "appended").open("ab", buffering=0)
appended.write(b"one")
both = (PLACE / "both").open("w+b", buffering=0)
both.write(b"written and kept")
tree = PLACE / "some" / "deep" / "tree"
tree.mkdir(parents=True)
(tree / "file").write_text("leaf")
os.link(tree / "file", tree / "link")
os.chmod(tree, 0o2750)
reading = open("/etc/passwd", "rb")
reading.seek(10)
deleted = (PLACE / "deleted").open("w+b")
deleted.write(b"x" * (3 << 20) + b"end")
deleted.flush()
(PLACE / "deleted").unlink()
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
assert not (PLACE / "deleted").exists()
assert renamed.read() == b"old content"
appended.write(b"two")
assert (PLACE / "appended").read_bytes() == b"onetwo"
assert both.tell() == 16
assert (PLACE / "both").read_bytes() == b"written and kept"
assert (tree / "link").read_text() == "leaf"
assert (tree / "link").stat().st_ino == (tree / "file").stat().st_ino
assert tree.stat().st_mode & 0o7777 == 0o2750
assert os.pread(scratch, 20, 0) == b"nameless"
