"""Locks of flock and fcntl on a file, as programs hold them that want to be the only one."""

import fcntl

from station import PLACE, dumped

file = (PLACE / "locked").open("w+")
other = (PLACE / "range").open("w+")
fcntl.flock(file, fcntl.LOCK_EX)
fcntl.lockf(other, fcntl.LOCK_EX, 10, 5)
dumped()
assert not file.closed
