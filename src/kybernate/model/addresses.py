"""HOST:PORT, as people write where something is to listen. An IPv6 address stands in brackets."""

from __future__ import annotations

import ipaddress
import socket

from kybernate.model.errors import BadInput


def host_and_port(text: str) -> tuple[str, int]:
    """The host without brackets. Raises BadInput."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or (":" in bare and bare == host) or not port.isascii() or not port.isdigit():
        raise BadInput("use HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080")
    if len(port) > 5 or int(port) > 65535:
        raise BadInput("a port is at most 65535")
    return bare, int(port)


def on_loopback(listen: str) -> bool:
    """Whether only this machine gets there. May ask the resolver."""
    try:
        return ipaddress.ip_address(resolved(listen)[4][0]).is_loopback
    except OSError:
        return False


def resolved(listen: str) -> tuple[int, int, int, str, tuple[str, int]]:
    """HOST:PORT as getaddrinfo has it. May ask the resolver; raises BadInput, OSError."""
    host, port = host_and_port(listen)
    family, kind, protocol, name, where = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return family, kind, protocol, name, (str(where[0]), int(where[1]))
