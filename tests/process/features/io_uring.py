"""Without io_uring and MPTCP, which give the errors of a kernel that lacks them, also in a program started after the restore."""

import ctypes
import errno
import socket
import subprocess
import sys

from station import dumped

libc = ctypes.CDLL(None, use_errno=True)
X32 = 0x40000000


def refused(*call: object) -> int:
    assert libc.syscall(*call) == -1
    return ctypes.get_errno()


def look() -> None:
    parameters = ctypes.create_string_buffer(120)
    for number in (425, 425 | X32):
        assert refused(number, 4, parameters) == errno.ENOSYS
    assert refused(426, -1, 0, 0, 0, None, 0) == errno.ENOSYS
    assert refused(427, -1, 0, None, 0) == errno.ENOSYS
    assert refused(428, -1, b"/nowhere", 0) != errno.ENOSYS, "the next number is another call"
    for family in (socket.AF_INET, socket.AF_INET6):
        assert refused(41, family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, 262) == errno.EPROTONOSUPPORT
        # As Go's listeners do then.
        with socket.socket(family, socket.SOCK_STREAM, 0) as listener:
            listener.listen()
    assert refused(41, 262, socket.SOCK_STREAM, 2) == errno.EAFNOSUPPORT
    with open("/proc/self/status") as status:
        assert "NoNewPrivs:\t0\n" in status.readlines(), "set-uid programs work"


LATER = "import ctypes; libc = ctypes.CDLL(None, use_errno=True); libc.syscall(425, 4, bytes(120)); print(ctypes.get_errno())"
look()
dumped()
look()
assert subprocess.check_output([sys.executable, "-S", "-c", LATER], text=True).strip() == str(errno.ENOSYS)
