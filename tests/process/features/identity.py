"""Who it is: user, directory, limits, environment; and what differs in another life: host name and seed."""

import os
import resource
import socket
from pathlib import Path

from station import CONTROL, dumped

identity = CONTROL.parent / "identity.env"


def read() -> dict[str, str]:
    return dict(line.split("=", 1) for line in identity.read_text().splitlines())


resource.setrlimit(resource.RLIMIT_STACK, (1 << 23, 1 << 24))
os.umask(0o27)
niceness = os.nice(3)  # on top of what the tests themselves run with
before = (os.getpid(), os.getsid(0), os.getcwd(), dict(os.environ), os.getresuid())
seed = read()
assert seed["KYBERNATE_RESTORED"] == "0"
dumped()
assert before == (os.getpid(), os.getsid(0), os.getcwd(), dict(os.environ), os.getresuid())
assert resource.getrlimit(resource.RLIMIT_STACK) == (1 << 23, 1 << 24)
assert os.umask(0) == 0o27
assert os.nice(0) == niceness
now = read()
assert now["KYBERNATE_SEED"] != seed["KYBERNATE_SEED"]
assert now["KYBERNATE_RESTORED"] == "1"
assert now["KYBERNATE_WORKLOAD"] == socket.gethostname() == "again"
assert Path("/proc/1/comm").read_text() == "kyb:again\n"
