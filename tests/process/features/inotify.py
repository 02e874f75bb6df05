"""inotify: a directory on the host, one in /dev/shm, and an event that nobody has read yet."""

import ctypes
import os
import select
import struct

from station import PLACE, dumped

libc = ctypes.CDLL(None, use_errno=True)
CREATE = 0x100
watching = libc.inotify_init1(os.O_NONBLOCK)
os.mkdir("/dev/shm/watched")
places = {
    libc.inotify_add_watch(watching, os.fsencode(place), CREATE): place for place in (str(PLACE), "/dev/shm/watched")
}
dumped()
while select.select([watching], [], [], 0)[0]:
    os.read(watching, 4096)  # the test's own go
seen = set()
for place in places.values():
    open(f"{place}/new", "w").close()
while select.select([watching], [], [], 0.5)[0]:
    data = os.read(watching, 4096)
    while data:
        watch, mask, _, length = struct.unpack("iIII", data[:16])
        if mask & CREATE and data[16 : 16 + length].rstrip(b"\0") == b"new":
            seen.add(places[watch])
        data = data[16 + length :]
assert seen == set(places.values()), seen
