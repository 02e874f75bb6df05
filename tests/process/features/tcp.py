"""TCP over loopback: listening, established with data in flight both ways, half closed; IPv4, IPv6 and UDP."""

import socket

from station import dumped

servers, connections = [], []
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET, "0.0.0.0")):
    server = socket.socket(family, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((host, 0))
    server.listen(5)
    client = socket.create_connection(server.getsockname()[:2])
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer = server.accept()[0]
    client.sendall(b"to server" * 1000)
    peer.sendall(b"to client" * 1000)
    servers.append(server)
    connections.append((client, peer))
half = socket.create_connection(servers[0].getsockname())
half_peer = servers[0].accept()[0]
half.sendall(b"last words")
half.shutdown(socket.SHUT_WR)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 0))
address = servers[0].getsockname()
dumped()


def all_of(connection: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        got += connection.recv(size - len(got))
    return got


for client, peer in connections:
    assert all_of(peer, 9000) == b"to server" * 1000
    assert all_of(client, 9000) == b"to client" * 1000
    client.sendall(b"ping")
    assert all_of(peer, 4) == b"ping"
    assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
assert all_of(half_peer, 10) == b"last words"
assert half_peer.recv(1) == b""
half_peer.sendall(b"still")
assert all_of(half, 5) == b"still"
for server in servers:
    new = socket.create_connection(server.getsockname()[:2])
    server.accept()
    new.close()
assert servers[0].getsockname() == address
udp.sendto(b"self", udp.getsockname())
assert udp.recv(10) == b"self"
