"""The token that lets a request over TCP in: a file that only the agent's user may read, made with a random one if missing."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from kybernate.model.errors import BadInput

_BYTES = 32
_LEAST = 16
"""Characters; a shorter one could be guessed."""
_BYTES_MAX = 4096


class TokenFile:
    """Read again whenever the file has changed, so that a new token takes effect, and a removed one lets nobody in, at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int, int] | None = None
        self._digest: bytes | None = None

    def make(self) -> None:
        """Make it if it is missing, and read it.

        Raises:
            BadInput: it can't be made or read, others may read it, or what is in it is no token.
        """
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self.path, flags, 0o600)
        except FileExistsError:
            pass
        except OSError as e:
            raise BadInput(
                f"can't make the token file {self.path}: {e.strerror}", hint="see agent.api.token_file"
            ) from e
        else:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(_BYTES) + "\n")
        self._digest = _digest(self._read())

    def matches(self, given: str) -> bool:
        """Whether that is the token. Takes the same time for every wrong one."""
        with contextlib.suppress(BadInput):
            self._look()
        expected = self._digest
        return hmac.compare_digest(_digest(given), expected or bytes(32)) and expected is not None

    def _look(self) -> None:
        try:
            found = self.path.stat()
            seen = (found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode)
        except OSError:
            seen = None
        if seen == self._seen and seen is not None:
            return
        self._seen = self._digest = None
        self._digest = _digest(self._read())
        self._seen = seen

    def _read(self) -> str:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077:
                    raise BadInput(f"others may read the token file {self.path}", hint=f"chmod 600 {self.path}")
                if found.st_uid not in (0, os.geteuid()):
                    raise BadInput(f"the token file {self.path} belongs to user {found.st_uid}", hint="chown it")
                text = file.read(_BYTES_MAX).decode("ascii").strip()
        except OSError as e:
            raise BadInput(f"can't read the token file {self.path}: {e.strerror}", hint="remove it") from e
        except UnicodeDecodeError:
            text = ""
        if len(text) < _LEAST or not text.isprintable() or " " in text:
            raise BadInput(
                f"what is in {self.path} is no token: it takes {_LEAST} or more visible ASCII characters in one word",
                hint="remove the file, then a random one is made",
            )
        return text


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
