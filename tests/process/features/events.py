"""epoll, eventfd, timerfd, signalfd and pidfd: what waits still waits, what was ready still is."""

import ctypes
import os
import select
import signal
import struct

from station import dumped

libc = ctypes.CDLL(None, use_errno=True)
poller = select.epoll()
quiet, busy = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(7, os.EFD_NONBLOCK)
poller.register(quiet, select.EPOLLIN)
poller.register(busy, select.EPOLLIN | select.EPOLLET)
timer = libc.timerfd_create(1, os.O_NONBLOCK)
libc.timerfd_settime(timer, 0, struct.pack("qqqq", 0, 20_000_000, 3600, 0), None)
mask = struct.pack("Q", 1 << (signal.SIGUSR1 - 1))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
signals = libc.signalfd(-1, ctypes.create_string_buffer(mask + bytes(120)), 0)
os.kill(os.getpid(), signal.SIGUSR1)
child = os.fork()
if child == 0:
    signal.pause()
    os._exit(0)
process = os.pidfd_open(child)
dumped()
assert poller.poll(0) == [(busy, select.EPOLLIN)]
os.eventfd_write(quiet, 1)
assert sorted(descriptor for descriptor, _ in poller.poll(0)) == [quiet]
assert os.eventfd_read(busy) == 7
left = ctypes.create_string_buffer(32)
libc.timerfd_gettime(timer, left)
assert struct.unpack("qqqq", left.raw)[1] == 20_000_000
assert 3500 < struct.unpack("qqqq", left.raw)[2] < 3601
assert struct.unpack("I", os.read(signals, 128)[:4])[0] == signal.SIGUSR1
signal.pidfd_send_signal(process, signal.SIGKILL)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
assert select.select([process], [], [], 0)[0]
