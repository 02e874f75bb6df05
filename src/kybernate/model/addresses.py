"""HOST:PORT, as people write where something is to listen. An IPv6 address stands in brackets."""

from __future__ import annotations

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
