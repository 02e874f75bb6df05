"""A large file that is open, and deleted, and has holes of far more than is kept of such files."""

import os
import tempfile

from station import PLACE, dumped

PIECE = 1 << 20

file, path = tempfile.mkstemp(dir=PLACE)
os.unlink(path)
content = os.urandom(PIECE)
os.write(file, content)
os.pwrite(file, content, 2 * PIECE)
os.ftruncate(file, 64 << 30)
dumped()
assert os.pread(file, 4 * PIECE, 0) == content + bytes(PIECE) + content + bytes(PIECE)
assert os.fstat(file).st_size == 64 << 30
