"""Completes the bill of materials that uv makes of the lock file: our version, and the Debian packages of the bundle's CRIU.

`materials.py VERSION PACKAGES`: CycloneDX comes on standard input and goes to standard output. PACKAGES is
.criu/packages.sha256, a line `SHA256  ./NAME_VERSION_ARCHITECTURE.deb` each; where it is missing the bundle has no CRIU either.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

_PACKAGE = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?([^_\s]+)_([^_\s]+)_([^_\s]+)\.deb")


def packages(text: str) -> Iterator[dict[str, Any]]:
    """Raises ValueError for a line that names no package: a bill that leaves something out is worse than none."""
    for line in text.splitlines():
        found = _PACKAGE.fullmatch(line)
        if found is None:
            raise ValueError(f"no package: {line!r}")
        digest, name, version, architecture = found.groups()
        version = unquote(version)  # apt writes the colon of an epoch as %3a
        purl = f"pkg:deb/debian/{name}@{quote(version, safe='')}?arch={architecture}"
        yield {
            "type": "library",
            "bom-ref": purl,
            "name": name,
            "version": version,
            "purl": purl,
            "hashes": [{"alg": "SHA-256", "content": digest}],
        }


def completed(bill: dict[str, Any], version: str, more: Iterator[dict[str, Any]]) -> dict[str, Any]:
    ours = bill["metadata"]["component"]
    ours.update(type="application", version=version, purl=f"pkg:pypi/{ours['name']}@{version}")
    return bill | {"components": [*bill["components"], *more]}


def main() -> None:
    _, version, place = sys.argv
    text = Path(place).read_text() if Path(place).exists() else ""
    json.dump(completed(json.load(sys.stdin), version, packages(text)), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
