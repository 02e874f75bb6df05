"""A pseudo-terminal with a program on it: both ends, its size, what was typed and not yet read."""

import os
import pty
import termios
import tty

from station import dumped

pid, master = pty.fork()
if pid == 0:
    tty.setraw(0)
    os.write(1, b"up")
    os.read(0, 2)
    os.write(1, b"bye")
    os._exit(0 if os.ttyname(0).startswith("/dev/pts/") else 1)
assert os.read(master, 10) == b"up"
termios.tcsetwinsize(master, (33, 101))
own_master, own_slave = pty.openpty()
tty.setraw(own_slave)
os.write(own_master, b"typed")
dumped()
assert termios.tcgetwinsize(master) == (33, 101)
assert os.read(own_slave, 10) == b"typed"
os.write(master, b"go")
assert os.read(master, 10) == b"bye"
assert os.waitpid(pid, 0)[1] == 0
