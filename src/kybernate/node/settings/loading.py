"""Reading a kybernate.yaml: one line with file and line number for whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from kybernate.model.errors import BadInput
from kybernate.node.settings.crosschecks import problems
from kybernate.node.settings.whole import Settings
from kybernate.node.settings.wording import first_of, place_of, suggestion

_VALUES_MAX = 200_000


def load(path: Path) -> Settings:
    """Read and check a file.

    Raises:
        BadInput: unreadable, no YAML, or senseless; one line with file and line number.
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
        _refuse_duplicates(root, origin)
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
    try:
        settings = Settings.model_validate(data)
    except ValidationError as e:
        location, words = first_of(e)
        if words == "no such setting":
            words += suggestion(Settings, location)
        raise BadInput(f"{origin}:{_line(root, location)}: {place_of(location)}: {words}") from e
    for location, text in problems(settings):
        raise BadInput(f"{origin}:{_line(root, location)}: {'.'.join(map(str, location))}: {text}")
    return settings


def _line(root: yaml.Node, location: Sequence[str | int]) -> int:
    """Line (from 1) of the deepest part of `location` that the file has."""
    line: int = root.start_mark.line + 1
    node = root
    for part in location:
        step = _step(node, part)
        if step is None:
            break
        line, node = step
    return line


def _step(node: yaml.Node, part: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None


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


def _refuse_duplicates(node: yaml.Node, origin: str) -> None:
    """YAML takes the last of two equal keys silently; a person meant one of them."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item, origin)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if str(key.value) in seen:
            raise BadInput(f"{origin}:{key.start_mark.line + 1}: {key.value!r} is set twice", hint="remove one of them")
        seen.add(str(key.value))
        _refuse_duplicates(value, origin)
