"""What clones would share: each has its own in a layer; outside of one they are refused with the path, or come back in turn."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Workloads

from kybernate.model.errors import BadInput, Conflict, Unsupported
from kybernate.model.types import WorkloadName, with_private_tmp
from kybernate.process.dumping import dump
from kybernate.process.images import How, Lock, Shared
from kybernate.process.restoring import restore
from kybernate.process.sharing import describe, held_by_others, missing
from kybernate.process.tree import Tree

from .conftest import ENVIRONMENT
from .dumps import FEATURES, feature, finish, wait_ready

pytestmark = pytest.mark.root

NEEDS = {"bound_socket": (How.BOUND, "socket"), "a_lock": (How.LOCKED, "locked")}
CLONES = ["first", "second"]


@pytest.fixture
def place() -> Iterator[Path]:
    """Where the programs make their files; a short path, since sockets lie below it."""
    made = Path(tempfile.mkdtemp(prefix="kyb-place-")).resolve()
    yield made
    shutil.rmtree(made)


@pytest.fixture
def start(workloads: Workloads, place: Path, eventually: Eventually) -> Callable[..., Tree]:
    """Run a program of features/ until it is set up; `apart`: with a layer over its place."""

    def begin(program: str, *arguments: str, apart: bool) -> Tree:
        tree = workloads.launch(
            *feature(program, *arguments), directory=FEATURES, environment=ENVIRONMENT | {"PLACE": str(place)},
            layers=[place] if apart else [],
        )  # fmt: skip
        wait_ready(tree, eventually)
        return tree

    return begin


@pytest.fixture
def clone(elsewhere: Workloads, tmp_path: Path) -> Callable[[str], Tree]:
    """Restore the dump in `images`."""

    def order(name: str) -> Tree:
        run_directory = elsewhere.state_directory / "workloads" / name
        tree = restore(tmp_path / "images", name=WorkloadName(name), run_directory=run_directory).tree
        elsewhere.trees.append(tree)
        return tree

    return order


@pytest.mark.parametrize("program", ["bound_socket", "a_lock", "deleted", "process_pool"])
def test_clones_have_their_own_in_a_layer(
    program: str, start: Callable[..., Tree], clone: Callable[[str], Tree], tmp_path: Path, place: Path
) -> None:
    tree = start(program, apart=True)
    assert dump(tree, tmp_path / "images").record.shared == ()
    with ThreadPoolExecutor(2) as pool:
        lives = list(pool.map(clone, CLONES))
    for life in (*lives, tree):
        finish(life)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("program", NEEDS)
def test_what_the_original_holds_is_not_taken_away(
    program: str, start: Callable[..., Tree], clone: Callable[[str], Tree], tmp_path: Path, place: Path
) -> None:
    how, name = NEEDS[program]
    tree = start(program, apart=False)
    record = dump(tree, tmp_path / "images").record
    assert (str(place / name), how) in {(each.path, each.how) for each in record.shared}
    with pytest.raises(Conflict, match=f"{place / name} is .* by a program that runs"):
        clone("first")
    finish(tree)
    life = clone("first")
    with pytest.raises(Conflict, match=f"{place / name} is .* by a program that runs"):
        clone("second")
    finish(life)


def test_a_process_pool_s_socket_is_not_taken_away(
    start: Callable[..., Tree], clone: Callable[[str], Tree], tmp_path: Path, place: Path
) -> None:
    tree = start("process_pool", apart=False)
    dump(tree, tmp_path / "images")
    with pytest.raises(Conflict, match=f"the Unix socket {place}/pymp-.*/listener-.* is bound by a program that runs"):
        clone("first")
    finish(tree)


def test_deleted_files_of_a_shared_directory(
    start: Callable[..., Tree], clone: Callable[[str], Tree], tmp_path: Path, place: Path
) -> None:
    tree = start("deleted", apart=False)
    record = dump(tree, tmp_path / "images").record
    assert Shared(str(place / "deleted"), How.DELETED) in record.shared
    with ThreadPoolExecutor(4) as pool:
        lives = list(pool.map(clone, [*CLONES, "third", "fourth"]))
    for life in (*lives, tree):
        finish(life)
    assert list(place.iterdir()) == []


def test_a_directory_that_is_not_there(
    start: Callable[..., Tree], clone: Callable[[str], Tree], tmp_path: Path, place: Path
) -> None:
    tree = start("deleted", apart=False)
    dump(tree, tmp_path / "images", hold=True)
    tree.remove()
    place.rmdir()
    with pytest.raises(BadInput, match=f"the directory {place} is missing, where it had deleted"):
        clone("first")
    place.mkdir()
    finish(clone("first"))


HOLDS = r"""
import mmap, os, socket, sys
os.chdir(sys.argv[1])
log = open("log", "a")
os.mkfifo("fifo")
fifo = os.open("fifo", os.O_RDWR)
memory = os.memfd_create("memory")
abstract, relative = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
abstract.bind(b"\0abstract")
relative.bind("relative")
relative.listen()
dotted = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
dotted.bind(os.getcwd() + "/../" + os.path.basename(os.getcwd()) + "/dotted")
file = os.open("mapped", os.O_RDWR | os.O_CREAT)
os.truncate(file, 4096)
shared = mmap.mmap(file, 4096)
os.close(file)
os.unlink("mapped")
reading = open("log")
os.mkdir("empty")
directory = os.open("empty", os.O_RDONLY)
os.rmdir("empty")
print("ready", flush=True)
while True:
    relative.accept()[0].close()
"""


def test_what_clones_would_share_is_found(
    workloads: Workloads, clone: Callable[[str], Tree], tmp_path: Path, place: Path, eventually: Eventually
) -> None:
    tree = workloads.python(HOLDS, str(place))
    wait_ready(tree, eventually)
    record = dump(tree, tmp_path / "images").record
    assert {(each.path.removeprefix(f"{place}/"), each.how) for each in record.shared} == {
        ("log", How.WRITTEN),
        ("fifo", How.WRITTEN),
        ("mapped", How.DELETED),
        ("empty", How.DELETED),
        ("relative", How.BOUND),
        ("dotted", How.BOUND),
    }
    assert f"clones would all write {place / 'log'}, which lies in no layer" in describe(record.shared)
    with pytest.raises(
        Conflict, match=f"{place / 'dotted'} is bound by a program that runs; .* {place / 'relative'} is bound"
    ):
        clone("first")
    tree.remove()
    assert clone("first").exit() is None


@pytest.mark.parametrize("how", [How.BOUND, How.DELETED])
def test_nothing_is_made_where_a_user_s_link_leads(place: Path, how: How) -> None:
    (place / "roots").mkdir()
    (place / "directory").symlink_to(place / "roots")
    shared = Shared(f"{place}/directory/socket", how)
    assert missing([shared]) == []
    os.chown(place / "directory", 1234, 1234, follow_symlinks=False)
    assert missing([shared]) == [f"{place}/directory is reached by a symbolic link of user 1234 to what isn't theirs"]


def test_no_lock_is_looked_for_behind_a_link(place: Path) -> None:
    with (place / "locked").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (place / "link").symlink_to(place / "locked")
        lock = Lock("FLOCK", exclusive=True, start=0, length=0)
        assert held_by_others([Shared(f"{place}/locked", How.LOCKED, lock)])
        assert held_by_others([Shared(f"{place}/link", How.LOCKED, lock)]) == []


def test_many_are_summed_up() -> None:
    shared = [Shared(f"/data/{number}", How.LOCKED, Lock("FLOCK", exclusive=True)) for number in range(25)]
    lines = describe(shared + shared)
    assert len(lines) == 21
    assert lines[-1] == "and so with 5 more files, locks and sockets"
    assert "\N{REPLACEMENT CHARACTER}" in describe([Shared("/data/\udcff", How.WRITTEN)])[0]


def test_clones_of_a_program_with_sqlite_databases(
    start: Callable[..., Tree], clone: Callable[[str], Tree], tmp_path: Path, place: Path
) -> None:
    """Where the databases are the host's they lock each other out, as any programs do."""
    tree = start("sqlite_databases", str(place), apart=False)
    dump(tree, tmp_path / "images")
    lives = [clone(name) for name in CLONES]
    for life in (*lives, tree):
        finish(life)
    for mode in ("delete", "wal"):
        with contextlib.closing(sqlite3.connect(place / f"{mode}.db")) as connection:
            assert connection.execute("SELECT COUNT(*) FROM numbers").fetchone() == (3,)


def test_sqlite_databases_of_a_workload_that_comes_back(
    start: Callable[..., Tree], clone: Callable[[str], Tree], tmp_path: Path, place: Path
) -> None:
    tree = start("sqlite_databases", str(place), apart=False)
    dump(tree, tmp_path / "images", hold=True)
    tree.remove()
    finish(clone("first"))


def test_sqlite_databases_in_a_layer_are_refused(start: Callable[..., Tree], tmp_path: Path, place: Path) -> None:
    """They would have new inodes: measured, the one can't be written any more, and two connections write at once."""
    tree = start("sqlite_databases", str(place), apart=True)
    with pytest.raises(
        Unsupported, match=f"SQLite database {place}/delete.db open.*SQLite database {place}/wal.db open"
    ):
        dump(tree, tmp_path / "images")
    notes = dump(tree, tmp_path / "images", allow_changes=True).notes
    assert any(f"{place}/wal.db" in note for note in notes)
    finish(tree)


@pytest.fixture
def outside_tmp() -> Iterator[Workloads]:
    """A state directory that doesn't lie in /tmp, as anywhere but in tests."""
    directory = Path(tempfile.mkdtemp(prefix="kyb-", dir="/var/tmp")).resolve()
    directory.chmod(0o755)
    made = Workloads(directory)
    yield made
    for tree in made.trees:
        tree.remove()
    shutil.rmtree(directory)


@pytest.mark.parametrize("inner", [False, True], ids=["alone", "with a layer in it"])
def test_a_tmp_of_its_own(
    inner: bool, outside_tmp: Workloads, place: Path, eventually: Eventually, tmp_path: Path
) -> None:
    given = place / "given"
    given.write_text("from the host")
    name = f"{place.name}-own"
    layers = [Path(path) for path in with_private_tmp([str(place)] if inner else [], wanted=True)]
    tree = outside_tmp.launch(*feature("private_tmp", str(given), name), directory=FEATURES, layers=layers)
    wait_ready(tree, eventually)
    record = dump(tree, tmp_path / "images").record
    assert record.shared == ()
    clones = []
    for clone_name in CLONES:
        run_directory = outside_tmp.state_directory / "workloads" / clone_name
        clones.append(restore(tmp_path / "images", name=WorkloadName(clone_name), run_directory=run_directory).tree)
        outside_tmp.trees.append(clones[-1])
    for life in (*clones, tree):
        finish(life)
    assert given.read_text() == "from the host"
    assert not Path("/tmp", name).exists()


def test_a_state_directory_in_tmp_hinders_a_private_one(workloads: Workloads) -> None:
    with pytest.raises(BadInput, match=r"no layer can be laid over /tmp: .*, where it would be kept, is in it"):
        workloads.shell("true", layers=[Path("/tmp")])
