"""POSIX semaphores: named, unlinked, and multiprocessing's own, which a child holds."""

import ctypes
import multiprocessing
import os

from station import dumped

libc = ctypes.CDLL(None, use_errno=True)
libc.sem_open.restype = ctypes.c_void_p


def value(semaphore: int) -> int:
    found = ctypes.c_int()
    libc.sem_getvalue(ctypes.c_void_p(semaphore), ctypes.byref(found))
    return found.value


named = libc.sem_open(b"/kybernate-named", os.O_CREAT, 0o600, 3)
gone = libc.sem_open(b"/kybernate-gone", os.O_CREAT, 0o600, 5)
libc.sem_unlink(b"/kybernate-gone")
libc.sem_wait(ctypes.c_void_p(named))
context = multiprocessing.get_context("fork")
lock, counter = context.Lock(), context.Value("i", 10)
lock.acquire()


def other() -> None:
    with lock, counter.get_lock():
        counter.value += 1


child = context.Process(target=other)
child.start()
dumped()
assert value(named) == 2
assert value(gone) == 5
again = libc.sem_open(b"/kybernate-named", 0)
libc.sem_post(ctypes.c_void_p(again))
assert value(named) == 3, "one semaphore, not two"
lock.release()
child.join(10)
assert child.exitcode == 0
assert counter.value == 11
