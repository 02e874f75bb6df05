"""By which names requests may come. Pure.

A page of a foreign site can have a browser on this machine ask us by a name of the site's own, once that name leads to our address
(DNS rebinding): to the browser that is the page's own server, and it shows it the answers. What it can't choose is the name that
the request then carries.

Limits: an address is nobody's but ours, so all addresses are answered; so is a request that names no host, since every browser
names one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

_LOCAL = ("localhost", "127.0.0.1", "[::1]")


class HostAllowlist:
    """`names` None: any. Else these, and this machine by addresses and `localhost`."""

    def __init__(self, names: Iterable[str] | None) -> None:
        self.any = names is None
        self._names = None if names is None else frozenset(name.lower().encode() for name in (*_LOCAL, *names))

    def allows(self, host: bytes) -> bool:
        """Whether to a request with this Host field, be there a port in it or not."""
        names = self._names
        if names is None or not host:
            return True
        name = without_port(host).lower()
        return name in names or name.removesuffix(b".") in names or _is_address(name)


def without_port(host: bytes) -> bytes:
    if host.startswith(b"["):
        return host.partition(b"]")[0] + b"]"
    return host.partition(b":")[0]


def _is_address(name: bytes) -> bool:
    try:
        ipaddress.ip_address(name.strip(b"[]").decode("latin-1"))
    except ValueError:
        return False
    return True
