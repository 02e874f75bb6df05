"""Shared memory: multiprocessing's in /dev/shm (one unlinked, one sparse), anonymous shared with a child."""

import mmap
import os
from multiprocessing.shared_memory import SharedMemory

from station import dumped

named = SharedMemory("kybernate-named", create=True, size=1 << 20)
named.buf[:] = bytes(range(256)) * 4096
unlinked = SharedMemory("kybernate-unlinked", create=True, size=1 << 20)
unlinked.buf[:] = bytes(reversed(range(256))) * 4096
unlinked.unlink()
with open("/dev/shm/sparse", "wb") as file:
    file.truncate(64 << 30)
    file.seek(32 << 30)
    file.write(b"deep down")
os.mkdir("/dev/shm/directory", 0o751)
os.symlink("sparse", "/dev/shm/directory/link")
anonymous = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
anonymous[:4] = b"mine"
child = os.fork()
if child == 0:
    dumped()
    named.buf[0] = 99
    anonymous[:4] = b"ours"
    os._exit(0)
dumped()
assert os.waitpid(child, 0)[1] == 0
assert anonymous[:4] == b"ours"
assert named.buf[0] == 99
assert sum(named.buf) == sum(range(256)) * 4096 + 99
assert sum(unlinked.buf) == sum(range(256)) * 4096
again = SharedMemory("kybernate-named")
assert again.buf[:2] == b"\x63\x01"
with open("/dev/shm/sparse", "rb") as file:
    file.seek(32 << 30)
    assert file.read(9) == b"deep down"
    assert os.fstat(file.fileno()).st_blocks < 100
    assert os.fstat(file.fileno()).st_size == 64 << 30
assert os.stat("/dev/shm/directory").st_mode & 0o777 == 0o751
assert os.readlink("/dev/shm/directory/link") == "sparse"
again.close()
named.unlink()
