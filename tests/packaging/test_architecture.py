"""ARCHITECTURE.md's tables of rooms say what is true: every package has its row, and uses what its row says and nothing else."""

import re
import tomllib
from pathlib import Path

import grimp
import pytest

TREE = Path(__file__).resolve().parents[2]
SOURCE = TREE / "src" / "kybernate"
ARCHITECTURE = (TREE / "ARCHITECTURE.md").read_text()
ROW = re.compile(r"^\| `((?:agent/)?\w+)/` \| .* \| ?(.*) \|$", re.MULTILINE)


def may_use() -> dict[str, set[str]]:
    """By room, such as `engine` or `agent/tiers`: what its row names. The agent's rooms are named there without `agent/`."""
    found = {}
    for room, named in ROW.findall(ARCHITECTURE):
        assert room not in found, f"{room} has two rows"
        used = {name.strip() for name in named.split(",")} - {"nothing", "nothing yet", "none of them"}
        found[room] = {f"agent/{name}" for name in used} if "/" in room else used
    return found


def contracts() -> list[dict[str, object]]:
    listed = tomllib.loads((TREE / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert isinstance(listed, list)
    return listed


def steps(container: str) -> dict[str, int]:
    """By room, its step in the contract's layers: the topmost is 0."""
    (contract,) = [each for each in contracts() if each.get("containers") == [container]]
    layers = contract["layers"]
    assert isinstance(layers, list)
    prefix = "" if container == "kybernate" else "agent/"
    return {prefix + name.strip("() "): step for step, layer in enumerate(layers) for name in str(layer).split("|")}


def ignored() -> set[tuple[str, str]]:
    """Arrows that are known to break a contract."""
    found: set[tuple[str, str]] = set()
    for contract in contracts():
        listed = contract.get("ignore_imports", [])
        assert isinstance(listed, list)
        for arrow in listed:
            importer, imported = re.split(r"\s*->\s*", arrow)
            found.add((importer, imported))
    return found


def room_of(module: str) -> tuple[str, str]:
    """Its package, and its room within the agent: empty where it has none."""
    _, package, *rest = [*module.split("."), "", ""]
    inner = (
        f"agent/{rest[0]}"
        if package == "agent" and (SOURCE / "agent" / rest[0] / "__init__.py").is_file() and rest[0]
        else ""
    )
    return package, inner


@pytest.fixture(scope="module")
def arrows() -> set[tuple[str, str]]:
    graph = grimp.build_graph("kybernate", cache_dir=None)
    found = {(one, other) for one in graph.modules for other in graph.find_modules_directly_imported_by(one)}
    return found - ignored()


def test_every_package_has_its_row() -> None:
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    inner = {f"agent/{path.parent.name}" for path in SOURCE.glob("agent/*/__init__.py")}
    assert set(may_use()) == packages | inner


@pytest.mark.parametrize("container", ["kybernate", "kybernate.agent"])
def test_a_row_names_only_rooms_below_its_own(container: str) -> None:
    step = steps(container)
    rooms = {room: used for room, used in may_use().items() if room in step}
    assert rooms
    for room, used in rooms.items():
        assert {name for name in used if step[name] <= step[room]} == set(), room


def test_a_room_uses_what_its_row_names_and_nothing_else(arrows: set[tuple[str, str]]) -> None:
    used: dict[str, set[str]] = {room: set() for room in may_use()}
    for one, other in arrows:
        for mine, theirs in zip(room_of(one), room_of(other), strict=True):
            if mine and theirs and mine != theirs:
                used[mine].add(theirs)
    assert used == may_use()


def test_the_glossary_s_places_exist() -> None:
    """Its third column: files and directories of the package, or of the tree, and classes in them."""
    rows = re.findall(r"^\| .* \| .* \| (.*) \| .* \|$", ARCHITECTURE.partition("## Words")[2], re.MULTILINE)
    assert len(rows) > 20
    for row in rows:
        for path in re.findall(r"`([\w/]+(?:/|\.py|\.c))`", row):
            assert (SOURCE / path).exists() or (TREE / path).exists(), path
        if found := re.fullmatch(r"`(\w+)` in `([\w/.]+)`", row):
            name, path = found.groups()
            assert f"class {name}(" in (SOURCE / path).read_text(), row
