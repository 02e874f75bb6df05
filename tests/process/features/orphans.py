"""Below a subreaper, as `tini -s` is one, processes whose parents have ended are its children, and stay that."""

import ctypes
import os

from station import dumped

SUBREAPER = 36
to_orphans, answers = os.pipe(), os.pipe()


def serve(name: bytes) -> None:
    """Say when its parent has ended, and in the life after whether all is as it was."""
    while os.getppid() != first:
        os.sched_yield()
    seen = os.getsid(0), os.getpgrp()
    os.write(answers[1], name)
    assert os.read(to_orphans[0], 1) == b"x"
    same = os.getppid() == first and seen == (os.getsid(0), os.getpgrp())
    os.write(answers[1], name if same else b"!")
    os._exit(0)


def leave_behind(name: bytes, *, own_session: bool) -> None:
    """As a shell that ends does after `nohup COMMAND &`, or `setsid COMMAND &`."""
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        return
    if os.fork() == 0:
        if own_session:
            os.setsid()
        serve(name)
    os._exit(0)


def heard() -> bytes:
    return bytes(sorted(b"".join(os.read(answers[0], 1) for _ in range(2))))


first = os.getpid()
assert ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0) == 0
leave_behind(b"1", own_session=True)
leave_behind(b"2", own_session=False)
assert heard() == b"12"
dumped()
os.write(to_orphans[1], b"xx")
assert heard() == b"12"
for _ in range(2):
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
