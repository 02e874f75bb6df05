"""The file with a bucket's credentials, read again when it changes: keys are rotated and tokens renewed while an agent runs."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kybernate.model.errors import BadInput

_SECRET_MODE = stat.S_IRWXG | stat.S_IRWXO

_Seen = tuple[int, int, int, int]
"""Device, inode, size and time of change: a new file in its place, a link that leads elsewhere and one written over all differ."""


class CredentialsFile:
    """A YAML mapping of the provider's options. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Reads nothing yet."""
        self._path = path
        self._lock = threading.Lock()
        self._seen: _Seen | None = None
        self._content: dict[str, Any] = {}

    def current(self, *, anew: bool = False) -> Mapping[str, Any]:
        """What it says now.

        Args:
            anew: read it also where it looks unchanged: a file system's clock may be coarse.

        Raises:
            BadInput: it can't be read, is open to others, or is no mapping of texts. What was read last is forgotten by nobody:
                ask again.
        """
        with self._lock:
            seen = self._look()
            if anew or seen != self._seen:
                self._content = _read(self._path)
                self._seen = seen
            return self._content

    def _look(self) -> _Seen:
        try:
            status = self._path.stat()
        except OSError as e:
            raise BadInput(f"can't read the credentials in {self._path}: {e.strerror}") from e
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            text = file.read()
    except OSError as e:
        raise BadInput(f"can't read the credentials in {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise BadInput(f"the credentials in {path} are no YAML") from e
    if status.st_mode & _SECRET_MODE or status.st_uid not in (0, os.geteuid()):
        raise BadInput(f"the credentials in {path} are open to others", hint=f"chmod 600 {path}")
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # a date that there isn't; nested a thousand times
        raise BadInput(f"the credentials in {path} are no YAML") from e
    if not isinstance(content, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in content.items()):
        raise BadInput(f"the credentials in {path} are no mapping of texts", hint="access_key_id: ..., one a line")
    return content
