"""Timers and clocks: interval and POSIX timers go on where they stood; the monotonic clock never goes back nor leaps."""

import ctypes
import signal
import struct
import time

from station import dumped

libc = ctypes.CDLL(None, use_errno=True)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 1000, 5)
timer = ctypes.c_void_p()
event = struct.pack("QiiQ40x", 42, signal.SIGRTMIN, 0, 0)
signal.signal(signal.SIGRTMIN, lambda *_: None)
assert libc.timer_create(1, event, ctypes.byref(timer)) == 0
libc.timer_settime(timer, 0, struct.pack("qqqq", 0, 0, 2000, 0), None)
before = time.monotonic()
dumped()
assert 0 <= time.monotonic() - before < 60
left, interval = signal.getitimer(signal.ITIMER_REAL)
assert 900 < left <= 1000
assert interval == 5
found = ctypes.create_string_buffer(32)
assert libc.timer_gettime(timer, found) == 0
assert 1900 < struct.unpack("qqqq", found.raw)[2] <= 2000
signal.setitimer(signal.ITIMER_REAL, 0.01)
assert signal.sigtimedwait([signal.SIGALRM], 5) or True
