"""Files in /tmp of a program that has one of its own: what the host has there, and what it has written."""

import socket
import sys
from pathlib import Path

from station import dumped

tmp = Path("/tmp")
given, name = Path(sys.argv[1]), sys.argv[2]
assert given.read_text() == "from the host"
given.write_text("changed")
(tmp / name).mkdir()
log = (tmp / name / "log").open("w+")
gone = (tmp / name / "gone").open("w+")
(tmp / name / "gone").unlink()
server = socket.socket(socket.AF_UNIX)
server.bind(str(tmp / name / "socket"))
server.listen()
dumped()
assert given.read_text() == "changed"
log.write("mine")
gone.write("mine")
with socket.socket(socket.AF_UNIX) as client:
    client.connect(str(tmp / name / "socket"))
    server.accept()[0].close()
    assert client.recv(1) == b""
assert sorted(path.name for path in (tmp / name).iterdir()) == ["log", "socket"]
