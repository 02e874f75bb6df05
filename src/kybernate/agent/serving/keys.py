"""The file of clients that may ask: `NAME: KEY`, or `NAME: {key: KEY, models: [MODEL]}`, or `sha256:` instead of `key:`.

Only hashes of keys leave this module.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from kybernate.model.errors import BadInput
from kybernate.model.messages import Key

_SECRET_MODE = 0o077
_SHORTEST = 16
"""Characters of a key: a shorter one can be guessed."""
_HASH = re.compile(r"[0-9a-f]{64}")


def load_keys(path: Path) -> tuple[Key, ...]:
    """
    Raises:
        BadInput: it can't be read, is open to others, or makes no sense. No message holds a key.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            text = file.read().decode()
        root, content = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except OSError as e:
        raise BadInput(f"can't read the keys in {path}: {e.strerror}") from e
    except (yaml.YAMLError, ValueError, RecursionError):
        raise BadInput(f"the keys in {path} are no YAML") from None  # the cause would show a line of it
    if status.st_mode & _SECRET_MODE or status.st_uid not in (0, os.geteuid()):
        raise BadInput(f"the keys in {path} are open to others", hint=f"chmod 600 {path}")
    if not isinstance(content, dict) or not content or root is None:
        raise BadInput(f"{path} names no keys", hint="NAME: KEY, one a line; without keys_file nobody needs one")
    given = Counter(str(name.value) for name, _ in root.value)
    if twice := next((name for name, count in given.items() if count > 1), None):
        # YAML takes the last silently; the first one's key would be refused, and nobody would know why.
        raise BadInput(f"client {twice[:60]!r} is in {path} twice", hint="give each client one name")
    keys = tuple(_key(str(name), value, path) for name, value in content.items())
    if len({key.sha256 for key in keys}) < len(keys):
        raise BadInput(f"two clients in {path} have one key", hint="give each its own")
    return keys


def _key(name: str, value: Any, path: Path) -> Key:
    client = value if isinstance(value, dict) else {"key": value}
    key, digest, models = client.get("key"), client.get("sha256"), client.get("models", [])
    if set(client) - {"key", "sha256", "models"} or (key is None) == (digest is None):
        raise BadInput(f"client {name[:60]!r} in {path}: give `key` or `sha256`, and perhaps `models`")
    if key is not None and (not isinstance(key, str) or len(key) < _SHORTEST):
        raise BadInput(f"client {name[:60]!r} in {path}: a key is a text of {_SHORTEST} characters at least")
    if digest is not None and (not isinstance(digest, str) or not _HASH.fullmatch(digest.lower())):
        raise BadInput(f"client {name[:60]!r} in {path}: sha256 is 64 hexadecimal digits")
    if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        raise BadInput(f"client {name[:60]!r} in {path}: `models` is a list of names")
    return Key(
        name=name,
        sha256=hashlib.sha256(key.encode()).hexdigest() if key is not None else str(digest).lower(),
        models=tuple(models),
    )
