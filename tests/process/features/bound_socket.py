"""A Unix socket bound to a path, which it alone answers."""

import socket

from station import PLACE, dumped

server = socket.socket(socket.AF_UNIX)
server.bind(str(PLACE / "socket"))
server.listen()
dumped()
with socket.socket(socket.AF_UNIX) as client:
    client.connect(str(PLACE / "socket"))
    server.settimeout(30)
    connection, _ = server.accept()
    connection.sendall(b"mine")
    assert client.recv(9) == b"mine"
(PLACE / "socket").unlink()
