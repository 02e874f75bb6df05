"""What no setting can know by itself: that two of them contradict each other. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from kybernate.model.quantities import format_size
from kybernate.model.types import TierName
from kybernate.settings.whole import Settings

Problem = tuple[tuple[str | int, ...], str]
"""Which setting, and what is wrong with it."""


def problems(settings: Settings) -> Iterator[Problem]:
    """In the file's order, as far as it has one."""
    yield from _shared_names(settings)
    yield from _programs(settings)
    yield from _images(settings)
    if settings.activator.origins == "any" and settings.activator.keys_file is None:
        yield ("activator", "origins"), "without keys_file every page that anybody here looks at might ask the models"


def _shared_names(settings: Settings) -> Iterator[Problem]:
    names: dict[str, str] = {name: name for name in settings.models}
    hosts: dict[str, str] = {}
    paths: dict[str, str] = {}
    ports: dict[int, str] = {}
    for name, model in settings.models.items():
        for kind, seen, given in (
            ("names", names, model.names),
            ("hidden_names", names, model.hidden_names),
            ("hosts", hosts, model.hosts),
            ("paths", paths, model.paths),
        ):
            for position, each in enumerate(given):
                other = seen.setdefault(each, name)
                if other != name:
                    yield ("models", name, kind, position), f"{each!r} leads to {other} already"
        if model.network == "host":
            other = ports.setdefault(model.port, name)
            if other != name:
                yield ("models", name, "port"), f"{other} has port {model.port} of the host already"
    for name in settings.jobs:
        if name in settings.models:
            yield ("jobs", name), "a model has that name"


def _programs(settings: Settings) -> Iterator[Problem]:
    limit = settings.agent.vram.limit
    for section, programs in (("models", settings.models), ("jobs", settings.jobs)):
        for name, program in programs.items():
            if name.startswith("pid-") and name.removeprefix("pid-").isdigit():
                yield (section, name), "such a name is that of a process which Kybernate did not start"
            if program.lowest_tier is TierName.OBJECT and settings.agent.store.object.url is None:
                yield (section, name, "lowest_tier"), "there is no object tier: agent.store.object.url is not set"
            largest = max(program.vram or (0,))
            if limit is not None and largest > limit:
                text = f"{format_size(largest)} will never fit: agent.vram.limit is {format_size(limit)}"
                yield (section, name, "vram"), text
            if program.demote_after is not None and program.lowest_tier is TierName.RAM:
                yield (section, name, "demote_after"), "it can't go below RAM: lowest_tier is ram"


def _images(settings: Settings) -> Iterator[Problem]:
    taken: dict[str, str] = {}
    for name, model in settings.models.items():
        if model.image is None or not model.image.take:
            continue
        other = taken.setdefault(model.image.name, name)
        if other != name:
            yield ("models", name, "image"), f"{other} takes the image {model.image.name} already"
