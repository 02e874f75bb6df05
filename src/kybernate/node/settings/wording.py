"""What is wrong with a value, in words for the person who wrote it: pydantic's errors speak of types. Pure."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from kybernate.model.quantities import format_size
from kybernate.model.types import MIB
from kybernate.node.settings.values import WORKLOAD_PATTERN, Section

Location = Sequence[str | int]

_KINDS = frozenset({"str", "int", "ImageSettings"})
_SHOWN = 60
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


def first_of(error: ValidationError) -> tuple[Location, str]:
    """Where and what. A setting that doesn't exist goes before one that is missing beside it: it is most likely that one,
    mistyped."""
    found: list[Any] = error.errors(include_url=False)
    first = found[0]
    if first["type"] == "missing":
        beside = [each for each in found if each["type"] == "extra_forbidden" and each["loc"][:-1] == first["loc"][:-1]]
        first = next(iter(beside), first)
    return first["loc"], _words(first)


def place_of(location: Location) -> str:
    """The setting's name, without what pydantic adds of its own (which of several kinds was tried)."""
    kept = [
        str(part) for part in location if not (isinstance(part, str) and ("(" in part or "[" in part or part in _KINDS))
    ]
    return ".".join(kept) or "the file"


def suggestion(whole: type[Section], location: Location) -> str:
    """What was meant, perhaps: ` (did you mean ...?)`, or where all settings are listed."""
    names = _names_at(whole, location[:-1])
    close = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.6)
    return f" (did you mean `{close[0]}`?)" if close else " (docs/configuration.md lists them)"


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
