"""A server as clones are made of: its port, its control socket, files in its working place; it counts who asks."""

import os
import socket
import sys
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from station import CONTROL

DATA = Path(sys.argv[1])


def identity() -> dict[str, str]:
    text = (CONTROL.parent / "identity.env").read_text()
    return dict(line.split("=", 1) for line in text.splitlines())


control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
control.bind(str(CONTROL / "1000.sock"))
control.listen()
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", 8080))
server.listen()
server.settimeout(0.05)
memory = SharedMemory("counter", create=True, size=1)
resource_tracker.unregister("/counter", "shared_memory")
log = (DATA / "log").open("a+")
deleted = (DATA / "deleted").open("w+")
(DATA / "deleted").unlink()
print("ready", flush=True)
while not (CONTROL / "go").exists():
    try:
        connection, _ = server.accept()
    except TimeoutError:
        continue
    memory.buf[0] += 1
    log.write(f"asked {memory.buf[0]}\n")
    log.flush()
    deleted.write("x")
    deleted.flush()
    connection.settimeout(None)
    connection.sendall(f"{socket.gethostname()} {identity()['KYBERNATE_SEED']} {memory.buf[0]}\n".encode())
    connection.close()
log.seek(0)
assert log.read() == "asked 1\n"
assert os.fstat(deleted.fileno()).st_size == 1
memory.unlink()
memory.close()
print("ended")
