"""Memory that holds zeros: written ones, zeros over a file's content, over what a child inherited, read-only ones."""

import ctypes
import mmap
import os
import tempfile

from station import dumped

SIZE = 8 << 20
PAGE = mmap.PAGESIZE
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def noise(number: int) -> bytes:
    return bytes((number * 7 + k) % 251 + 1 for k in range(PAGE))


def page(memory: mmap.mmap, number: int) -> bytes:
    return memory[number * PAGE : (number + 1) * PAGE]


written = mmap.mmap(-1, SIZE, flags=PRIVATE)
written[:] = bytes(SIZE)  # each page is there, and zeros
mixed = mmap.mmap(-1, SIZE, flags=PRIVATE)
for number in range(0, SIZE // PAGE, 3):
    mixed[number * PAGE : (number + 1) * PAGE] = noise(number)
    mixed[(number + 1) * PAGE : (number + 1) * PAGE + 1] = b"\0"
almost = mmap.mmap(-1, SIZE, flags=PRIVATE)
for number in range(SIZE // PAGE):
    almost[(number + 1) * PAGE - 1 : (number + 1) * PAGE] = b"\x01"
with tempfile.TemporaryFile() as file:
    file.write(b"x" * SIZE)
    file.flush()
    over_a_file = mmap.mmap(file.fileno(), SIZE, flags=mmap.MAP_PRIVATE)
over_a_file[: SIZE // 2] = bytes(SIZE // 2)
shared = mmap.mmap(-1, SIZE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
shared[:] = bytes(SIZE)
locked = mmap.mmap(-1, PAGE, flags=PRIVATE)
locked[:] = bytes(PAGE)
libc = ctypes.CDLL(None, use_errno=True)
address = ctypes.addressof(ctypes.c_char.from_buffer(locked))
assert libc.mprotect(ctypes.c_void_p(address), PAGE, mmap.PROT_READ) == 0
inherited = mmap.mmap(-1, SIZE, flags=PRIVATE)
for number in range(SIZE // PAGE):
    inherited[number * PAGE : (number + 1) * PAGE] = noise(number)


def check(*, child: bool) -> None:
    assert written[:] == bytes(SIZE)
    for number in range(SIZE // PAGE):
        assert page(mixed, number) == (bytes(PAGE) if number % 3 else noise(number))
        assert page(almost, number) == bytes(PAGE - 1) + b"\x01"
        zeros = child and number < SIZE // PAGE // 2
        assert page(inherited, number) == (bytes(PAGE) if zeros else noise(number))
    assert over_a_file[:] == bytes(SIZE // 2) + b"x" * (SIZE // 2)
    assert shared[:] == bytes(SIZE)
    assert locked[:] == bytes(PAGE)
    written[:3] = b"now"  # and it can be written again
    assert written[:4] == b"now\0"


child = os.fork()
if child == 0:
    inherited[: SIZE // 2] = bytes(SIZE // 2)
    dumped()
    check(child=True)
    os._exit(0)
dumped()
assert os.waitpid(child, 0)[1] == 0
check(child=False)
