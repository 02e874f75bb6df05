"""Reading a kybernate.yaml: a line with file and line number for each thing that is wrong with it, all of them at once.

Top-level keys that begin with `x-` are a person's own: templates that anchors name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from kybernate.model.errors import BadInput
from kybernate.settings.crosschecks import problems
from kybernate.settings.renamed import OldName, old_name, with_new_names
from kybernate.settings.whole import OfFile, Settings
from kybernate.settings.wording import all_of, place_of

_VALUES_MAX = 200_000
_ERRORS_MAX = 20
"""More don't help anybody."""
OWN_PREFIX = "x-"


def load(path: Path) -> Settings:
    """Read and check a file.

    Raises:
        BadInput: unreadable, no YAML, or senseless; for each error a line with file and line number.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not UTF-8 text"
        raise BadInput(
            f"can't read {path}: {reason}", hint="name an existing file; without one `kybernate up` takes the defaults"
        ) from e
    return parse(text, origin=str(path))


def parse(text: str, *, origin: str) -> Settings:
    """Check the text of a file; `origin` names it in errors.

    Raises:
        BadInput: as load().
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return Settings()
        refuse_bombs(root, origin)
        found = list(_duplicates(root))
        data = yaml.safe_load(text)
    except RecursionError:
        raise BadInput(f"{origin}:1: it is nested too deeply", hint="no setting is deeper than ten levels") from None
    except ValueError as e:  # a number of thousands of digits, or a day that there isn't
        raise BadInput(f"{origin}:1: no valid YAML: {str(e)[:80]}", hint="put texts in quotes") from e
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        problem = getattr(e, "problem", None) or "not readable"
        raise BadInput(
            f"{origin}:{line}: no valid YAML: {problem}", hint="check the indentation and quotes of this line"
        ) from e
    if not isinstance(data, dict):
        raise BadInput(f"{origin}:1: the file must be a mapping", hint="begin it with `agent:` or `models:`")
    named, old = with_new_names({key: value for key, value in data.items() if not _own(key)})
    found += [(_line(root, each.location), _twice(each)) for each in old if each.both]
    warnings = tuple(_warning(each, origin, _line(root, each.location)) for each in old)
    try:
        settings = Settings.model_validate(named, context=OfFile(warnings))
        found += [(_line(root, where), f"{'.'.join(map(str, where))}: {text}") for where, text in problems(settings)]
    except ValidationError as e:
        found += [(_line(root, where), f"{place_of(where)}: {text}") for where, text in all_of(e, Settings)]
        raise _refusal(found, origin) from e
    if found:
        raise _refusal(found, origin)
    return settings


def _twice(name: OldName) -> str:
    return f"{'.'.join(name.location)}: is the old name of `{name.new}`, which is here, too: remove `{name.old}`"


def _warning(name: OldName, origin: str, line: int) -> str:
    return f"{'.'.join(name.location)}: is called `{name.new}` now ({origin}:{line}); the next version refuses the old name"


def _own(key: object) -> bool:
    return isinstance(key, str) and key.startswith(OWN_PREFIX)


def _refusal(found: Iterable[tuple[int, str]], origin: str) -> BadInput:
    """In the file's order."""
    shown = [(line, "".join(c if c.isprintable() else "·" for c in text)) for line, text in found]
    lines = list(dict.fromkeys(f"{origin}:{line}: {text}" for line, text in sorted(shown, key=lambda each: each[0])))
    more = [f"{origin}: {len(lines) - _ERRORS_MAX} more errors"] if len(lines) > _ERRORS_MAX else []
    return BadInput("\n".join([*lines[:_ERRORS_MAX], *more]))


def _line(root: yaml.Node, location: Sequence[str | int]) -> int:
    """Line (from 1) of the deepest part of `location` that the file has."""
    line: int = root.start_mark.line + 1
    node = root
    for depth, part in enumerate(location, start=1):
        step = _step(node, part)
        if step is None and (old := old_name(tuple(location[:depth]))) is not None:
            step = _step(node, old)
        if step is None:
            break
        line, node = step
    return line


def _step(node: yaml.Node, part: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line + 1, value
        for template in _merged(node):
            if (step := _step(template, part)) is not None:
                return step
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None


def _merged(node: yaml.MappingNode) -> Iterator[yaml.Node]:
    """What `<<` takes into it."""
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            yield from value.value if isinstance(value, yaml.SequenceNode) else [value]


def refuse_bombs(root: yaml.Node, origin: str) -> None:
    """A few lines of anchors that name each other can stand for billions of values, or for endless ones.

    Raises:
        BadInput: so it is.
    """
    sizes: dict[yaml.Node, int | None] = {}

    def size(node: yaml.Node) -> int:
        if node in sizes:
            if (known := sizes[node]) is None:
                raise BadInput(f"{origin}:{node.start_mark.line + 1}: an anchor that contains itself")
            return known
        sizes[node] = None
        inside: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inside = [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            inside = node.value
        found = sizes[node] = 1 + sum(map(size, inside))
        if found > _VALUES_MAX:
            where = f"{origin}:{node.start_mark.line + 1}"
            raise BadInput(f"{where}: with its anchors written out this would be more than {_VALUES_MAX} values")
        return found

    size(root)


def _duplicates(node: yaml.Node) -> Iterator[tuple[int, str]]:
    """YAML takes the last of two equal keys silently; a person meant one of them."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _duplicates(item)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if str(key.value) in seen:
            yield key.start_mark.line + 1, f"{key.value!r} is set twice: remove one of them"
        seen.add(str(key.value))
        yield from _duplicates(value)
