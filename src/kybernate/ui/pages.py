"""The dashboard's files, read once: there is no path in a request that could lead anywhere else."""

from __future__ import annotations

from pathlib import Path

from kybernate.agent.api.tcp import Page

_MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
STATIC = Path(__file__).resolve().parent / "static"


def pages() -> dict[str, Page]:
    """By path; `/` is index.html."""
    found = {
        f"/{path.relative_to(STATIC).as_posix()}": Page(body=path.read_bytes(), media=_MEDIA[path.suffix])
        for path in sorted(STATIC.rglob("*"))
        if path.suffix in _MEDIA
    }
    return {**found, "/": found["/index.html"]}
