"""Which settings differ between two readings of a file, by the names they have in it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from kybernate.settings.values import Section


def differing(old: Section, new: Section, *, under: str) -> list[str]:
    """As in `activator.limits.body`, in the order of the page that lists them."""
    return list(_differing(old, new, under))


def _differing(old: Section, new: Section, under: str) -> Iterator[str]:
    for name, field in type(new).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        setting = f"{under}.{field.alias or name}"
        if isinstance(before, Section) and isinstance(after, Section):
            yield from _differing(before, after, setting)
        else:
            yield setting
