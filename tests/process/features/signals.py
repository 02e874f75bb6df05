"""Signals: pending ones (a real-time one with its value), handlers, ignored ones, an alternate stack's worth of mask."""

import ctypes
import os
import signal

from station import dumped

seen = []
signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
signal.signal(signal.SIGHUP, signal.SIG_IGN)
blocked = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN + 1]
signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
os.kill(os.getpid(), signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGUSR2)
libc = ctypes.CDLL(None, use_errno=True)
libc.sigqueue(os.getpid(), int(signal.SIGRTMIN) + 1, ctypes.c_void_p(77))
libc.sigqueue(os.getpid(), int(signal.SIGRTMIN) + 1, ctypes.c_void_p(78))
dumped()
assert signal.sigpending() == set(blocked)
assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
assert signal.sigtimedwait([signal.SIGUSR2], 5).si_signo == signal.SIGUSR2
for _ in range(2):
    assert signal.sigtimedwait([signal.SIGRTMIN + 1], 5).si_pid == os.getpid()
signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
assert seen == [signal.SIGUSR1]
