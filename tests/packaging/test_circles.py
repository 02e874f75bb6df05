"""No module of a package needs another that needs it: each can be read, tested and replaced with only what lies below it.

Every import counts, also those within functions and for type checkers alone: who reads a module has to know what they name. The
contracts in pyproject.toml hold the arrows between packages; this is about the modules inside of them.

Where there is a circle, its modules stand in `KNOWN` by package, with the reason. Who takes one out of the circle takes it out
of there, too, or the test fails; so the list only shrinks.
"""

from __future__ import annotations

import grimp
import pytest

pytestmark = pytest.mark.unit

KNOWN: dict[str, set[str]] = {}


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """All sets of nodes of which each is reached from each other (Tarjan's strongly connected components), single ones left out."""
    found: list[set[str]] = []
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        path.append(node)
        for other in sorted(arrows[node]):
            if other not in index:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in path:
                lowest[node] = min(lowest[node], index[other])
        if lowest[node] == index[node]:
            begin = path.index(node)
            if len(path) - begin > 1:
                found.append(set(path[begin:]))
            del path[begin:]

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return found


@pytest.fixture(scope="module")
def in_circles() -> dict[str, set[str]]:
    """By package, its modules that are part of a circle."""
    graph = grimp.build_graph("kybernate", cache_dir=None)
    found: dict[str, set[str]] = {}
    for circle in circles({module: graph.find_modules_directly_imported_by(module) for module in graph.modules}):
        for module in circle:
            _, package, *rest = module.split(".")
            found.setdefault(package, set()).add(".".join(rest))
    return found


def test_a_circle_is_found_wherever_one_enters_it() -> None:
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"d", "b"}, "d": {"e"}, "e": {"d"}, "f": {"a", "f"}}
    assert sorted(map(sorted, circles(arrows))) == [["b", "c"], ["d", "e"]]


def test_no_modules_need_each_other_but_those_that_are_known(in_circles: dict[str, set[str]]) -> None:
    for package in in_circles | KNOWN:
        found, known = in_circles.get(package, set()), KNOWN.get(package, set())
        assert found - known == set(), f"{package}: a new circle; pass in what is needed, or move it below both"
        assert known - found == set(), f"{package}: in no circle any more; take it out of KNOWN"
