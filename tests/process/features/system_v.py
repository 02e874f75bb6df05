"""System V objects: shared memory, mapped or not, semaphores and message queues have their ids, keys, owners and contents."""

import ctypes
import os
import struct
import time

from station import dumped

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.shmdt.argtypes = [ctypes.c_void_p]
CREATE, PRIVATE, REMOVE, STAT, NO_WAIT = 0o1000, 0, 0, 2, 0o4000
GETVAL, SETVAL = 12, 16
PAGES = 4096 * 300


def checked(result: int) -> int:
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result


def attach(segment: int, flags: int = 0) -> int:
    address = libc.shmat(segment, None, flags)
    assert address not in (None, ctypes.c_void_p(-1).value), os.strerror(ctypes.get_errno())
    return int(address)


def fill(address: int, text: bytes) -> None:
    ctypes.memmove(address, text, len(text))


def permissions(control: object, *arguments: int) -> tuple[int, ...]:
    """Key, owner and mode: the head of each kind's struct, an ipc_perm."""
    found = ctypes.create_string_buffer(256)
    checked(control(*arguments, STAT, found))  # type: ignore[operator]
    return struct.unpack_from("=iIIIII", found)


checked(libc.shmget(0x111, 4096, CREATE | 0o600))
gone = checked(libc.shmget(0x112, 4096, CREATE | 0o600))
checked(libc.shmctl(gone, REMOVE, None))  # a hole, so that the next ids are no small numbers
detached = checked(libc.shmget(0x113, 5000, CREATE | 0o640))
address = attach(detached)
fill(address, b"detached")
checked(libc.shmdt(address))
kept = checked(libc.shmget(0x114, PAGES, CREATE | 0o600))
mapped = attach(kept)
fill(mapped + PAGES - 8, b"attached")
doomed = checked(libc.shmget(PRIVATE, 8192, CREATE | 0o600))
anonymous = attach(doomed)
checked(libc.shmctl(doomed, REMOVE, None))  # as most programs do: gone with its last mapping
fill(anonymous, b"unnamed")
semaphores = checked(libc.semget(0x115, 3, CREATE | 0o660))
for number, value in enumerate((7, 0, 32767)):
    checked(libc.semctl(semaphores, number, SETVAL, value))
queue = checked(libc.msgget(0x116, CREATE | 0o600))
for kind, text in ((5, b"first"), (3, b"x" * 3000), (5, b"third")):
    checked(libc.msgsnd(queue, struct.pack("q", kind) + text, len(text), NO_WAIT))
before = [
    permissions(libc.shmctl, detached),
    permissions(libc.shmctl, kept),
    permissions(libc.msgctl, queue),
    permissions(libc.semctl, semaphores, 0),
]
child = os.fork()
if child == 0:  # waits in a semaphore, with the segment mapped, in both lives
    checked(libc.semop(semaphores, struct.pack("HhH", 1, -1, 0), 1))
    os._exit(0 if ctypes.string_at(mapped, 5) == b"later" else 1)
while b"semtimedop" not in (found := open(f"/proc/{child}/syscall", "rb").read()) and not found.startswith(
    (b"65 ", b"220 ")
):
    time.sleep(0.001)

dumped()

assert before == [
    permissions(libc.shmctl, detached),
    permissions(libc.shmctl, kept),
    permissions(libc.msgctl, queue),
    permissions(libc.semctl, semaphores, 0),
]
assert libc.shmget(0x113, 0, 0) == detached
assert ctypes.string_at(attach(detached), 9) == b"detached\0"
assert ctypes.string_at(mapped + PAGES - 8, 8) == b"attached"
assert ctypes.string_at(attach(kept) + PAGES - 8, 8) == b"attached"
assert ctypes.string_at(anonymous, 7) == b"unnamed"
assert [libc.semctl(semaphores, number, GETVAL) for number in range(3)] == [7, 0, 32767]
buffer = ctypes.create_string_buffer(8192)
for expected in ((5, b"first"), (3, b"x" * 3000), (5, b"third")):
    length = checked(libc.msgrcv(queue, buffer, 8000, ctypes.c_long(0), NO_WAIT))
    assert (struct.unpack_from("q", buffer)[0], buffer.raw[8 : 8 + length]) == expected
assert checked(libc.msgget(0x117, CREATE | 0o600)) != queue, "new ones are possible"
fill(mapped, b"later")
checked(libc.semop(semaphores, struct.pack("HhH", 1, 1, 0), 1))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "it woke up, and sees what is written"
checked(libc.shmdt(anonymous))
assert libc.shmctl(doomed, STAT, buffer) == -1, "its last mapping is gone"
