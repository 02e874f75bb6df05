"""What snapshots and tenants may be called: their names become files, directories and objects in a bucket."""

from __future__ import annotations

import re
from typing import NewType

from kybernate.model.errors import BadInput

SnapshotName = NewType("SnapshotName", str)

SNAPSHOT_NAME = r"^[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?$"
"""Of a name, for descriptions of the API; without `..` besides."""
_NAME = re.compile(SNAPSHOT_NAME)


def snapshot_name(text: str) -> SnapshotName:
    """Check a snapshot's name; it becomes a file. Raises BadInput."""
    return SnapshotName(stored_name(text, "snapshot"))


def stored_name(text: str, what: str) -> str:
    """Check a name of this kind of thing; `what`: the kind, for the message. Raises BadInput."""
    if not _NAME.fullmatch(text) or ".." in text:
        raise BadInput(
            f"bad {what} name {text[:80]!r}",
            hint="use 1 to 128 lower-case letters, digits, '-', '_' and single '.', beginning and ending with a letter or digit",
        )
    return text
