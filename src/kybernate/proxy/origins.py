"""Which pages of other sites may ask from a browser (CORS). Pure.

A browser shows a page an answer only if that names the page's origin, and asks before it sends what a plain form couldn't. That
question carries no key, so it is answered without one: it says what may be asked, and nothing of a model. Whatever is asked
then needs its key as ever. No answer lets cookies through: a key is something that the page itself must have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_ANY: Final = b"*"
_METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_HEADERS: Final = b"authorization, content-type, x-api-key"
_SHOWN: Final = b"retry-after, x-request-id, x-kybernate-wait-ms, x-kybernate-swap-ms, x-kybernate-tier"
_VARY: Final = b"vary: Origin\r\n"
_AGE_S: Final = 600
_NAMES = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:[ \t]*,[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+)*")
_NAMES_MAX: Final = 2048


class Origins:
    """`allowed`: as a browser sends them, in lower case; `*`: any page."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = frozenset(origin.encode() for origin in allowed)
        self._any = _ANY in self._allowed

    def allow(self, origin: bytes) -> bool:
        return bool(origin) and (self._any or origin.lower() in self._allowed)

    def fields(self, origin: bytes) -> bytes:
        """Lines of the head of each answer to it. Whoever may not ask is told nothing, but whoever keeps the answer is told that
        others are answered otherwise."""
        if not self.allow(origin):
            return _VARY
        whose = _ANY if self._any else origin
        return b"access-control-allow-origin: %b\r\naccess-control-expose-headers: %b\r\n%b" % (whose, _SHOWN, _VARY)


def is_preflight(method: bytes, named: dict[bytes, bytes]) -> bool:
    return method == b"OPTIONS" and b"access-control-request-method" in named


def permission(named: dict[bytes, bytes]) -> bytes:
    """What an allowed page may send: lines of the answer's head."""
    asked = named.get(b"access-control-request-headers", b"")
    headers = asked if len(asked) <= _NAMES_MAX and _NAMES.fullmatch(asked) else _HEADERS
    return b"access-control-allow-methods: %b\r\naccess-control-allow-headers: %b\r\naccess-control-max-age: %d\r\n" % (
        _METHODS,
        headers,
        _AGE_S,
    )
