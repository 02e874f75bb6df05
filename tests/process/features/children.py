"""Children, grandchildren, a process group and a session of their own, and a zombie; each is still whose child it was."""

import os
import signal

from station import dumped

to_child, from_parent = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    grandchild = os.fork()
    if grandchild == 0:
        os.setsid()
        os.read(to_child[0], 1)
        os._exit(0 if os.getsid(0) == os.getpid() else 5)
    os.setpgid(0, 0)
    os.write(from_parent[1], b"x")
    _, status = os.waitpid(grandchild, 0)
    os._exit(7 if status == 0 and os.getpgrp() == os.getpid() else 6)
zombie = os.fork()
if zombie == 0:
    os._exit(3)
killed = os.fork()
if killed == 0:
    signal.pause()
os.kill(killed, signal.SIGTERM)
os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
os.read(from_parent[0], 1)
dumped()
os.write(to_child[1], b"x")
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert os.waitstatus_to_exitcode(os.waitpid(zombie, 0)[1]) == 3
assert os.waitstatus_to_exitcode(os.waitpid(killed, 0)[1]) == -signal.SIGTERM
