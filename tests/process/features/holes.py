"""A large file that is open, and deleted, and has a hole."""

import os
import tempfile

from station import PLACE, dumped

PIECE = 1 << 20

file, path = tempfile.mkstemp(dir=PLACE)
os.unlink(path)
content = os.urandom(PIECE)
os.write(file, content)
os.pwrite(file, content, 2 * PIECE)
dumped()
assert os.pread(file, 4 * PIECE, 0) == content + bytes(PIECE) + content
