"""Settings that had another name: the old one is read for one version, with a warning that names the new one. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ANY = "*"
"""In a section's path: every key there, which is a name of a person's choice."""
_PROGRAM = {"sink": "demote_after", "lowest": "lowest_tier"}
RENAMED: Mapping[tuple[str, ...], Mapping[str, str]] = {
    ("agent", "arbiter"): {"quantum": "min_run"},
    ("models", ANY): _PROGRAM,
    ("models", ANY, "limits"): {"hold": "max_wait"},
    ("jobs", ANY): _PROGRAM,
    ("serving",): {"quantum": "min_run", "max_wait": "due_after"},
}
"""By section: old names and what they are called now."""


@dataclass(frozen=True, slots=True)
class OldName:
    """One that a file uses."""

    section: tuple[str, ...]
    old: str
    new: str
    both: bool
    """The file has the new one, too: one of them would be ignored."""

    @property
    def location(self) -> tuple[str, ...]:
        return (*self.section, self.old)


def with_new_names(data: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], list[OldName]]:
    """The file's content by today's names, and what had to be renamed for it, in the order of RENAMED. Changes nothing in place:
    anchors make several sections one object.
    """
    found: list[OldName] = []
    for path, names in RENAMED.items():
        for section in list(_sections(data, path)):
            content = _at(data, section)
            used = [old for old in names if old in content]
            found += [OldName(section, old, names[old], names[old] in content) for old in used]
            if used:
                data = _replaced(data, section, {_new(key, names): value for key, value in content.items()})
    return data, found


def old_name(location: tuple[str | int, ...]) -> str | None:
    """What the last part of a setting's place was called before; None: as now."""
    for path, names in RENAMED.items():
        if len(path) + 1 == len(location) and all(
            want in (ANY, have) for want, have in zip(path, location, strict=False)
        ):
            return next((old for old, new in names.items() if new == location[-1]), None)
    return None


def _new(key: Any, names: Mapping[str, str]) -> Any:
    return names.get(key, key) if isinstance(key, str) else key


def _sections(node: Any, path: tuple[str, ...], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Those that the file has of a path with ANY in it."""
    if not isinstance(node, Mapping):
        return
    if not path:
        yield above
        return
    keys = [key for key in node if isinstance(key, str)] if path[0] == ANY else [path[0]]
    for key in keys:
        if key in node:
            yield from _sections(node[key], path[1:], (*above, key))


def _at(node: Any, location: tuple[str, ...]) -> Mapping[Any, Any]:
    for part in location:
        node = node[part]
    content: Mapping[Any, Any] = node
    return content


def _replaced(node: Mapping[Any, Any], location: tuple[str, ...], content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """A copy with other content at one place, in the same order of keys."""
    if not location:
        return content
    return {
        key: _replaced(value, location[1:], content) if key == location[0] else value for key, value in node.items()
    }
