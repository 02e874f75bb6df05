"""A memfd with content, mapped, sealed, shared with a child, a second one that is empty, and one of 64 GiB that is holes."""

import fcntl
import mmap
import os

from station import dumped

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
descriptor = os.memfd_create("kybernate-test", os.MFD_ALLOW_SEALING)
os.ftruncate(descriptor, 1 << 20)
mapped = mmap.mmap(descriptor, 1 << 20)
mapped[:] = b"memfd" * 209715 + b"!"
fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
os.lseek(descriptor, 7, os.SEEK_SET)
empty = os.memfd_create("empty")
large = os.memfd_create("large")
os.pwrite(large, b"end", (64 << 30) - 3)
child = os.fork()
if child == 0:
    dumped()
    mapped[:5] = b"child"
    os._exit(0)
dumped()
assert os.waitpid(child, 0)[1] == 0
assert mapped[:10] == b"childmemfd"
assert os.pread(descriptor, 5, 0) == b"child"
assert os.lseek(descriptor, 0, os.SEEK_CUR) == 7
assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) == SEALS
assert os.readlink(f"/proc/self/fd/{descriptor}").startswith("/memfd:kybernate-test")
assert os.fstat(empty).st_size == 0
assert os.fstat(large).st_size == 64 << 30
assert os.pread(large, 10, (64 << 30) - 3) == b"end"
