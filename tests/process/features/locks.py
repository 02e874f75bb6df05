"""File locks: flock, POSIX record locks and open file description locks, held against a child of the dump's own time."""

import fcntl
import os
import struct

from station import PLACE, dumped

paths = {name: PLACE / name for name in ("flock", "posix", "ofd", "free")}
files = {name: path.open("w+") for name, path in paths.items()}
OFD_SETLK = 37
whole = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
fcntl.flock(files["flock"], fcntl.LOCK_EX)
fcntl.lockf(files["posix"], fcntl.LOCK_EX, 10, 5)
fcntl.fcntl(files["ofd"], OFD_SETLK, whole)
dumped()


def taken(name: str) -> bool:
    try:
        with paths[name].open("r+") as file:
            if name == "flock":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            elif name == "ofd":
                fcntl.fcntl(file, OFD_SETLK, whole)
            else:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
    except BlockingIOError:
        return True
    return False


child = os.fork()
if child == 0:
    found = [name for name in paths if taken(name)]
    os._exit(0 if found == ["flock", "posix", "ofd"] else 1)
assert os.waitpid(child, 0)[1] == 0
fcntl.flock(files["flock"], fcntl.LOCK_UN)
assert not taken("flock")
