"""Who asks: API keys by their SHA-256, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from kybernate.model.messages import Endpoint, Key


class Keys:
    """All keys that are valid now; without any, nobody needs one."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple((bytes.fromhex(key.sha256), key) for key in keys)
        self.needed = bool(self._keys)
        self._by_hash = {key.sha256: key for _, key in self._keys}

    def present(self, key: Key | None) -> Key | None:
        """What an earlier configuration's key may do now. None: nothing."""
        return None if key is None else self._by_hash.get(key.sha256)

    def find(self, token: bytes) -> Key | None:
        """All are compared, so that the time taken tells nothing of which one it was."""
        digest = hashlib.sha256(token).digest()
        found = None
        for known, key in self._keys:
            if hmac.compare_digest(digest, known):
                found = key
        return found


def token_of(named: dict[bytes, bytes]) -> bytes | None:
    """What the client shows: `x-api-key`, else `Authorization: Bearer`."""
    token = named.get(b"x-api-key")
    if token is not None:
        return token
    scheme, _, rest = named.get(b"authorization", b"").partition(b" ")
    return rest.strip() if scheme.lower() == b"bearer" else None


def fields_with_keys(named: dict[bytes, bytes]) -> frozenset[bytes]:
    """Header fields that are meant for us, so that no workload learns a key. Other kinds of Authorization are its own."""
    if named.get(b"authorization", b"")[:7].lower() == b"bearer ":
        return frozenset((b"x-api-key", b"authorization"))
    return frozenset((b"x-api-key",))


def allows(key: Key | None, endpoint: Endpoint) -> bool:
    if key is None or not key.models or endpoint.model in key.models:
        return True
    return any(name in key.models for name in endpoint.names)
