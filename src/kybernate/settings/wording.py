"""What is wrong with a value, in words for the person who wrote it: pydantic's errors speak of types. Pure."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from kybernate.model.quantities import format_size
from kybernate.model.types import MIB
from kybernate.settings.values import WORKLOAD_PATTERN, Section

Location = Sequence[str | int]

_KINDS = frozenset({"str", "int", "ImageSettings"})
_SHOWN = 60
_OURS = {
    "cmd": "command",
    "exec": "command",
    "entrypoint": "command",
    "args": "command",
    "ttl": "idle",
    "keep_alive": "idle",
    "sleep_after": "idle",
    "idle_timeout": "idle",
    "aliases": "names",
    "alias": "names",
    "model_name": "names",
    "served_model_name": "names",
    "env": "environment",
    "envs": "environment",
    "cwd": "directory",
    "chdir": "directory",
    "workdir": "directory",
    "working_dir": "directory",
    "working_directory": "directory",
    "usemodelname": "rewrite_model",
    "use_model_name": "rewrite_model",
    "checkendpoint": "ready",
    "healthcheck": "ready",
    "health_check": "ready",
    "readiness": "ready",
    "concurrencylimit": "limits.concurrency",
    "max_concurrency": "limits.concurrency",
    "memory": "vram",
    "gpu_memory": "vram",
    "vram_limit": "vram",
    "schedule_hours": "schedule",
    "hours": "schedule",
    "cron": "schedule",
    "autostart": "start",
    "auto_start": "start",
    "preload": "start",
    "restart_policy": "restart",
    "services": "models",
    "listen_address": "listen",
    "bind": "listen",
    "api_keys": "keys_file",
    "apikeys": "keys_file",
}
"""Settings of other tools, and what they are here."""
_TYPES = {
    "string": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "dict": "a mapping, lines of `NAME: VALUE` below it",
    "model": "a mapping, lines of `NAME: VALUE` below it",
    "mapping": "a mapping, lines of `NAME: VALUE` below it",
    "tuple": "a list, such as [a, b]",
    "list": "a list, such as [a, b]",
    "frozen": "a list, such as [a, b]",
    "set": "a list, such as [a, b]",
    "path": "a path",
}
"""By the first word of pydantic's name of the error."""
_BOUNDS = {
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
}


def all_of(error: ValidationError, whole: type[Section]) -> list[tuple[Location, str]]:
    """Where and what, each setting once: of the several kinds that a value may be, the first one's error counts. One that is
    missing where another doesn't exist is that one, mistyped."""
    found: list[Any] = error.errors(include_url=False)
    meant: set[tuple[str | int, ...]] = set()
    first: dict[tuple[str | int, ...], tuple[Location, str]] = {}
    for each in found:
        where = tuple(each["loc"])
        text = _words(each)
        if each["type"] == "extra_forbidden":
            name = _meant(whole, where)
            meant.add((*where[:-1], name or ""))
            text += _suggestion(name)
        elif where[-1:] == ("[key]",):
            text += _as_a_name(where)
        first.setdefault(_setting(where), (where, text))
    absent = {tuple(each["loc"]) for each in found if each["type"] == "missing"}
    return [each for key, each in first.items() if not (key in absent and key in meant)]


def _setting(where: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Up to where pydantic tried kinds of values."""
    tried = next((i for i, part in enumerate(where) if _pydantics(part) and part != "[key]"), len(where))
    return where[:tried]


def _pydantics(part: str | int) -> bool:
    """A part of a location that isn't in the file: which of several kinds was tried."""
    return isinstance(part, str) and ("(" in part or "[" in part or part in _KINDS)


def place_of(location: Location) -> str:
    """The setting's name, without what pydantic adds of its own (which of several kinds was tried)."""
    kept = [str(part) for part in location if not _pydantics(part)]
    return ".".join(kept) or "the file"


def _meant(whole: type[Section], location: Location) -> str | None:
    """The setting that was meant, perhaps."""
    names = _names_at(whole, location[:-1])
    given = str(location[-1])
    ours = _OURS.get(given.lower().replace("-", "_"), "")
    if ours.partition(".")[0] in names:
        return ours
    return next(iter(difflib.get_close_matches(given, names, n=1, cutoff=0.6)), None)


def _suggestion(meant: str | None) -> str:
    return f" (did you mean `{meant}`?)" if meant else " (docs/configuration.md lists them)"


def _as_a_name(where: tuple[str | int, ...]) -> str:
    """How a key that can't be a workload's name is had all the same: `Qwen/Qwen3-8B` is what requests ask for."""
    key = str(where[-2])
    name = re.sub(r"[^a-z0-9]+", "-", key.rpartition("/")[2].lower())[:63].strip("-")
    if not name:
        return ""
    if where[0] != "models" or not key.strip() or not key.isprintable():
        return f"; `{name}` would be one"
    return f"; call it `{name}` and let requests ask for it as ever with `names: [{key[:_SHOWN]}]`"


def _words(error: Mapping[str, Any]) -> str:
    kind, context = str(error["type"]), error.get("ctx", {})
    given = repr(error.get("input"))[:_SHOWN]
    if kind == "extra_forbidden":
        return "no such setting"
    if kind == "missing":
        return "must be given"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"must be {words} {_number(context[key])}, not {given}"
    if kind in ("enum", "literal_error"):
        return f"use {context['expected']}, not {given}"
    if kind == "string_pattern_mismatch" and context.get("pattern") == WORKLOAD_PATTERN:
        return f"{given} is no name: use small letters, digits and '-' in between, 63 at most"
    if kind == "string_pattern_mismatch":
        return f"{given} has a character that can't be in it"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    if (expected := _TYPES.get(kind.partition("_")[0])) is not None:
        if error.get("input") is None:
            return f"there is nothing here: write {expected}, or leave the line out"
        quotes = "; put it in quotes" if expected == "a text" and isinstance(error["input"], bool | int | float) else ""
        return f"must be {expected}, not {given}{quotes}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return message if given in message else f"{message}, got {given}"


def _number(bound: float) -> str:
    """Of such sizes only bytes are."""
    return format_size(int(bound)) if bound >= 64 * MIB and bound % MIB == 0 else f"{bound:,g}"


def _names_at(whole: type[Section], location: Location) -> list[str]:
    """Settings that there are below a place."""
    here: Iterable[type[Section]] = [whole]
    for part in location:
        fields = [field for section in here for field in section.model_fields.items()]
        found = [each.annotation for name, each in fields if part in (name, each.alias)]
        if found:
            here = [section for annotation in found for section in _sections(annotation)]
        # else: a name of a person's choice, in a mapping of sections
    return [field.alias or name for section in here for name, field in section.model_fields.items()]


def _sections(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for each in typing.get_args(annotation) for section in _sections(each)]
