"""A tenant's keys: what its chunks are called by, what they are encrypted with.

One secret of 32 bytes, from a file or a command, makes three keys: for names of chunks, for encryption, and for the
seals of manifests and pack indices. So a name tells a stranger nothing of the content, nothing is shared between tenants,
and what somebody without the key has put there is noticed. A tenant without a secret has names and seals that anybody can
compute: they find damage, not malice.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NewType

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kybernate.model.errors import BadInput
from kybernate.model.snapshot_names import stored_name

TenantName = NewType("TenantName", str)
ChunkId = NewType("ChunkId", bytes)
"""32 bytes: the keyed BLAKE3 of the content."""

ID_BYTES = 32
NO_KEY = bytes(16)
"""The fingerprint of having no secret."""
DEFAULT_TENANT = TenantName("default")

_COMMAND_SECONDS = 30.0
_FILE_BYTES_MAX = 4096
"""More than any key with blanks around it."""


def tenant_name(text: str) -> TenantName:
    """Check a tenant's name; it becomes a directory. Raises BadInput."""
    return TenantName(stored_name(text, "tenant"))


@dataclass(frozen=True, slots=True)
class Keys:
    """What follows from a tenant's secret. The secret itself isn't kept."""

    tenant: TenantName
    fingerprint: bytes
    """16 bytes that tell keys apart and tell nothing of them; `NO_KEY` without a secret."""
    naming: bytes = field(repr=False)
    sealing: bytes = field(repr=False)
    cipher: AESGCM | None = field(repr=False)

    @property
    def encrypted(self) -> bool:
        return self.cipher is not None

    def chunk_id(self, content: memoryview) -> ChunkId:
        return ChunkId(blake3(content, key=self.naming).digest())

    def seal(self, *parts: bytes | memoryview) -> bytes:
        """32 bytes that nobody without the secret can make for these bytes."""
        hasher = blake3(key=self.sealing)
        for part in parts:
            hasher.update(part)
        return hasher.digest()


def keys_of(tenant: TenantName, secret: bytes | None = None) -> Keys:
    """The keys of a tenant, from its secret of 32 bytes, or without one: then nothing is encrypted.

    Raises:
        BadInput: the secret has another length.
    """
    if secret is not None and len(secret) != 32:
        raise BadInput(f"the key of tenant {tenant} has {len(secret)} bytes instead of 32")
    source = secret if secret is not None else b"no secret: " + tenant.encode()
    naming, sealing = (_derived(source, purpose) for purpose in ("chunk names", "seals"))
    if secret is None:
        return Keys(tenant, NO_KEY, naming, sealing, None)
    return Keys(
        tenant, _derived(source, "fingerprint")[:16], naming, sealing, AESGCM(_derived(source, "content, AES-256-GCM"))
    )


def _derived(secret: bytes, purpose: str) -> bytes:
    return blake3(secret, derive_key_context=f"kybernate 2026 store: {purpose}").digest()


def secret_from_file(path: Path) -> bytes:
    """The secret in a file: 32 raw bytes, or 64 hexadecimal digits.

    Raises:
        BadInput: no such file, not readable, others may read or change it, or neither of the two.
    """
    try:
        with path.open("rb") as file:
            status, content = os.fstat(file.fileno()), file.read(_FILE_BYTES_MAX)
    except OSError as e:
        raise BadInput(f"can't read the key file {path}: {e.strerror}") from e
    if status.st_mode & 0o077:
        raise BadInput(f"the key file {path} is open to others", hint=f"chmod 600 {path}")
    if status.st_uid not in (0, os.geteuid()):
        raise BadInput(f"the key file {path} belongs to user {status.st_uid}", hint=f"chown {os.geteuid()} {path}")
    return _secret(content, f"the key file {path}")


def secret_from_command(command: Sequence[str]) -> bytes:
    """The secret that a command prints: 32 raw bytes, or 64 hexadecimal digits. No shell; at most 30 seconds.

    Raises:
        BadInput: it can't be started, fails, takes too long, or prints something else. What it printed is not told.
    """
    what = f"the key command {command[0] if command else ''!r}"
    try:
        done = subprocess.run(
            list(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_SECONDS, check=False
        )
    except (OSError, IndexError, subprocess.TimeoutExpired) as e:
        raise BadInput(f"{what} can't be run: {e}") from e
    if done.returncode:
        raise BadInput(
            f"{what} failed with status {done.returncode}: {done.stderr[-200:].decode(errors='replace').strip()}"
        )
    return _secret(done.stdout, what)


def _secret(content: bytes, what: str) -> bytes:
    if len(content) == 32:
        return content
    try:
        secret = bytes.fromhex(content.decode("ascii").strip())
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise BadInput(
            f"{what} gives no key", hint="it must be 32 bytes or 64 hexadecimal digits: `openssl rand -hex 32`"
        )
    return secret
