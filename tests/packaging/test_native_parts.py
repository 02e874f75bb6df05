"""The parts of the preload library: each includes what it uses, none needs another that needs it; the README has their order."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

NATIVE = Path(__file__).resolve().parents[2] / "native"
PRELOAD = NATIVE / "preload"
LINE_MAX = 120
HOOKS = ["kyb_dlsym", "kyb_dlvsym"]
"""Called from assembly in their own file."""
DEFINED = re.compile(r"^(?:\w[\w ]*[ *])?(kyb_\w+)\(.*\n\{", re.MULTILINE)
DECLARED = re.compile(r"\b(kyb_\w+)\(")


def included(path: Path) -> set[str]:
    """Headers of the library's own, without their suffix."""
    return set(re.findall(r'^#include "(\w+)\.h"$', path.read_text(), re.MULTILINE))


@cache
def parts() -> dict[str, set[str]]:
    """By part, which others its `.c` and its `.h` include."""
    names = {path.stem for path in PRELOAD.glob("*.[ch]")}
    files = {name: [path for path in (PRELOAD / f"{name}.c", PRELOAD / f"{name}.h") if path.exists()] for name in names}
    return {name: set().union(*map(included, files[name])) - {name} for name in names}


def in_order() -> list[set[str]]:
    """The parts as the README lists them, a row each."""
    rows = re.findall(r"^\| (`.*?) \| ", (PRELOAD / "README.md").read_text(), re.MULTILINE)
    return [set(re.findall(r"`(\w+)\.[ch]`", row)) for row in rows]


def test_the_readme_lists_every_part_once() -> None:
    listed = [name for row in in_order() for name in row]
    assert sorted(listed) == sorted(parts())


def test_a_part_uses_those_listed_above_it_only() -> None:
    above: set[str] = set()
    for row in in_order():
        for name in row:
            assert parts()[name] - above - row == set(), name
        above |= row
    for row in in_order():
        for name in row:  # within a row, too, no two need each other
            assert {other for other in parts()[name] & row if name in parts()[other]} == set()


def test_each_part_includes_the_header_of_whatever_it_calls() -> None:
    owner = {
        function: path.stem
        for path in PRELOAD.glob("*.h")
        for function in DECLARED.findall(re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL))
    }
    for path in PRELOAD.glob("*.c"):
        text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        used = {owner[function] for function in DECLARED.findall(text) if function in owner}
        assert used - included(path) == set(), path.name


def test_a_header_declares_what_its_own_part_defines() -> None:
    for path in PRELOAD.glob("*.c"):
        header = path.with_suffix(".h")
        declared = DECLARED.findall(header.read_text()) if header.exists() else []
        assert [name for name in DEFINED.findall(path.read_text()) if name not in declared + HOOKS] == [], path.name


def test_lines_are_no_longer_than_a_screen() -> None:
    files = [path for path in NATIVE.rglob("*.[ch]") if "generated" not in path.parts]
    numbered = [(path.name, *line) for path in files for line in enumerate(path.read_text().split("\n"), 1)]
    assert [(name, number) for name, number, line in numbered if len(line) > LINE_MAX] == []
