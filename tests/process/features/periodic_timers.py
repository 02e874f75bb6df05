"""Periodic timerfds: whatever had expired when the dump was made, each of them fires again, and no tick is lost."""

import ctypes
import os
import select
import struct
import time

from station import dumped

libc = ctypes.CDLL(None, use_errno=True)
REALTIME, MONOTONIC = 0, 1
ABSOLUTE = 1


def periodic(clock, period_ns, *, absolute=False):
    timer = libc.timerfd_create(clock, os.O_NONBLOCK)
    first = time.clock_gettime_ns(clock) + period_ns if absolute else period_ns
    times = struct.pack("qqqq", *divmod(period_ns, 10**9), *divmod(first, 10**9))
    assert libc.timerfd_settime(timer, ABSOLUTE if absolute else 0, times, None) == 0
    return timer


def ticks(timer, within_s):
    assert select.select([timer], [], [], within_s)[0], "it doesn't fire"
    return struct.unpack("Q", os.read(timer, 8))[0]


MILLISECOND = 10**6
short = [
    periodic(clock, period_ns, absolute=absolute)
    for clock in (REALTIME, MONOTONIC)
    for period_ns in (MILLISECOND // 10, MILLISECOND, 20 * MILLISECOND)
    for absolute in (False, True)
]
unread = periodic(MONOTONIC, 2000 * MILLISECOND)
began = time.monotonic()
disarmed = libc.timerfd_create(MONOTONIC, os.O_NONBLOCK)
select.select([unread], [], [])
dumped()
for timer in short:
    assert ticks(timer, 0) >= 1, "what had expired is there at once"
    for _ in range(3):
        ticks(timer, 5)
count = ticks(unread, 0)
next_at = began + 2 * (count + 1)
ticks(unread, 5)
assert abs(time.monotonic() - next_at) < 0.5, "one that nobody had read stays in phase"
assert not select.select([disarmed], [], [], 0.1)[0]
