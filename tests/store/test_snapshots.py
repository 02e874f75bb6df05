"""What goes in comes out: extents, files, names, progress, budgets. Damage is in test_damage, crashes in test_crashes."""

from __future__ import annotations

import mmap
import os
import stat
import threading
from pathlib import Path

import pytest
from tests.store.rig import (
    PLAIN,
    SEALED,
    SECRET,
    OpenTier,
    Slots,
    empty_slots,
    load,
    manifest_path,
    noise,
    packs_of,
    save,
)

from kybernate.model.errors import BadInput, Busy, Cancelled, Conflict, NoRoom, NotFound
from kybernate.model.progress import Progress
from kybernate.model.types import CHUNK_BYTES, MIB
from kybernate.store import (
    Catalog,
    LocalMedium,
    SnapshotWriter,
    Tier,
    collect,
    keys_of,
    open_reader,
    open_writer,
    verify,
)
from kybernate.store.errors import TierWiped, WrongKey
from kybernate.store.needs import GpuNeed, Needs
from kybernate.store.tenants import Keys, TenantName, secret_from_command, secret_from_file, tenant_name

SHRINKS = (b"weights " * 32 + bytes(256)) * (CHUNK_BYTES // 512)


@pytest.mark.parametrize("keys", [PLAIN, SEALED], ids=["plain", "encrypted"])
@pytest.mark.parametrize("compress_below", [0.0, 0.85], ids=["as-is", "compressed"])
@pytest.mark.parametrize("where", ["disk", "tmpfs"])
def test_what_goes_in_comes_out(
    open_tier: OpenTier, tmp_path: Path, keys: Keys, compress_below: float, where: str
) -> None:
    root = None if where == "disk" else Path("/dev/shm") / f"kybernate-test-{os.getpid()}-{tmp_path.name}"
    try:
        tier = open_tier(root, compress_below=compress_below)
        space = tier.space(keys)
        contents = [
            noise(1),
            None,
            SHRINKS,
            noise(2),
            noise(1),
            noise(3, 4096 * 3),
        ]
        large = noise(4, 3 * CHUNK_BYTES + 777)
        sparse = bytes(CHUNK_BYTES) + b"end"
        (tmp_path / "large").write_bytes(large)
        (tmp_path / "large").chmod(0o640)
        slots = Slots([c or b"" for c in contents])
        with open_writer(space, "train-1", total=len(large)) as writer:
            writer.add_extent(
                [None if c is None else v for c, v in zip(contents, slots.views, strict=True)],
                size=5 * CHUNK_BYTES + 4096 * 3,
                about={"pid": 7, "gpu": "GPU-1"},
            )
            writer.add_file("criu/pages-1.img", tmp_path / "large")
            writer.add_bytes("criu/sparse", sparse)
            writer.add_bytes("empty", b"")
            writer.add_bytes("layer.tar", large[:-5])
            writer.commit(
                state={"depth": "zero", "list": [1, None]},
                needs=Needs(driver="580.1", gpus=(GpuNeed(name="NVIDIA H200"),), more={"x": 1}),
                labels={"kind": "gold"},
            )
        with open_reader(space, "train-1") as reader:
            manifest = reader.manifest
            extent = manifest.extents[0]
            assert extent.about == {"pid": 7, "gpu": "GPU-1"}
            assert (manifest.state, manifest.labels) == ({"depth": "zero", "list": [1, None]}, {"kind": "gold"})
            assert manifest.needs.driver == "580.1"
            out = empty_slots([extent.length(k) for k in range(extent.count)])
            heard: list[int] = []
            order = [4, 0, 5, 2, 1, 3]
            reader.read([(extent.first + k, out.views[k]) for k in order], done=heard.append)
            assert out.contents() == [c if c is not None else bytes(CHUNK_BYTES) for c in contents]
            assert sorted(heard) == [0, 1, 2, 3, 4, 5]
            assert [reader.is_zero(k) for k in range(6)] == [False, True, False, False, False, False]
            assert reader.read_bytes("criu/sparse") == sparse
            target = tmp_path / "out"
            reader.extract(target)
            assert (target / "criu/pages-1.img").read_bytes() == large
            assert stat.S_IMODE((target / "criu/pages-1.img").stat().st_mode) == 0o640
            assert (target / "criu/sparse").read_bytes() == sparse
            assert (target / "criu/sparse").stat().st_blocks * 512 < CHUNK_BYTES
            assert (target / "empty").read_bytes() == b""
            assert (target / "layer.tar").read_bytes() == large[:-5]
            with pytest.raises(BadInput, match="exists already"):
                reader.extract(target)
        assert verify(space).problems == ()
    finally:
        if root is not None:
            tier.close()
            for path in sorted(root.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            root.rmdir()


def test_the_second_snapshot_of_the_same_content_costs_its_manifest(open_tier: OpenTier) -> None:
    space = open_tier().space(PLAIN)
    contents = [noise(k) for k in range(6)]
    assert save(space, "one", contents) == 6 * CHUNK_BYTES
    assert save(space, "two", [*contents[:5], noise(99)]) == CHUNK_BYTES
    assert load(space, "two") == [*contents[:5], noise(99)]


def test_zeros_and_repetitions_cost_nothing(open_tier: OpenTier) -> None:
    tier = open_tier()
    space = tier.space(PLAIN)
    assert save(space, "zeros", [None, bytes(CHUNK_BYTES), None]) == 0
    assert packs_of(tier) == []
    assert save(space, "same", [noise(1)] * 8) == CHUNK_BYTES
    assert load(space, "zeros") == [bytes(CHUNK_BYTES)] * 3


def test_small_files_lie_close_together(open_tier: OpenTier) -> None:
    tier = open_tier()
    space = tier.space(PLAIN)
    files = {f"f{k}": noise(k, 100) for k in range(1000)}
    save(space, "small", [], **files)
    assert sum(path.stat().st_size for path in packs_of(tier)) < 1000 * (100 + 80) + 3 * 4096 + 8192
    with open_reader(space, "small") as reader:
        assert all(reader.read_bytes(path) == content for path, content in list(files.items())[::37])


def test_memory_that_begins_anywhere(open_tier: OpenTier) -> None:
    space = open_tier().space(PLAIN)
    memory = mmap.mmap(-1, 3 * CHUNK_BYTES)
    view = memoryview(memory)[13 : 13 + CHUNK_BYTES]
    view[:] = noise(1)
    with open_writer(space, "odd") as writer:
        writer.add_extent([view])
        writer.commit()
    view[:] = bytes(CHUNK_BYTES)
    with open_reader(space, "odd") as reader:
        reader.read([(0, view)])
    assert bytes(view) == noise(1)


def test_many_packs_are_filled_and_none_is_too_large(open_tier: OpenTier) -> None:
    tier = open_tier()
    space = tier.space(PLAIN)
    contents = [noise(k) for k in range(23)]
    save(space, "many", contents, small=b"x")
    sizes = [path.stat().st_size for path in packs_of(tier)]
    assert len(sizes) >= 8
    assert max(sizes) <= 8 * MIB
    assert load(space, "many") == contents
    assert tier.usage().used == sum(sizes) + manifest_path(tier, "many").stat().st_size


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", "A", "a..b", "x" * 200, ".hidden", "a\n", "ü"])
def test_bad_names_are_refused(open_tier: OpenTier, name: str) -> None:
    space = open_tier().space(PLAIN)
    with pytest.raises(BadInput, match="name"):
        open_writer(space, name)
    with pytest.raises(BadInput, match="name"):
        open_reader(space, name)
    with pytest.raises(BadInput, match="name"):
        tenant_name(name)


@pytest.mark.parametrize(
    "path", ["", "..", "../x", "/etc/passwd", "a/../../b", "a//b", "a/./b", "a\0b", "a/", "\udcff", "x" * 300]
)
def test_bad_paths_are_refused(open_tier: OpenTier, path: str) -> None:
    space = open_tier().space(PLAIN)
    with open_writer(space, "paths") as writer, pytest.raises(BadInput, match="path"):
        writer.add_bytes(path, b"x")
    assert space.snapshots() == []


@pytest.mark.parametrize("root", ["relative/path", "/tmp/../etc"])
def test_bad_directories_are_refused(root: str) -> None:
    with pytest.raises(BadInput, match="directory"):
        LocalMedium(Path(root))


def test_a_name_is_taken_once(open_tier: OpenTier) -> None:
    tier = open_tier()
    space = tier.space(PLAIN)
    with open_writer(space, "name") as late:  # begun while it is free
        late.add_bytes("f", noise(5, 100_000))
        save(space, "name", [noise(1)])
        with pytest.raises(Conflict, match="already"):
            late.commit()
    with pytest.raises(Conflict, match="already"):
        open_writer(space, "name")
    assert load(space, "name") == [noise(1)]
    assert verify(space).problems == ()
    assert len(packs_of(tier)) == 1, "what the late one wrote is gone"


def test_what_is_not_committed_is_not_there(open_tier: OpenTier) -> None:
    tier = open_tier()
    space = tier.space(PLAIN)
    slots = Slots([noise(k) for k in range(12)])
    with open_writer(space, "half") as writer:
        writer.add_extent(slots.views)
    assert space.snapshots() == []
    assert packs_of(tier) == []
    assert tier.usage().used == 0
    with pytest.raises(NotFound):
        open_reader(space, "half")


def test_progress_ends_at_the_whole(open_tier: OpenTier) -> None:
    space = open_tier().space(PLAIN)
    said: list[Progress] = []
    slots = Slots([noise(k) for k in range(4)])
    with open_writer(space, "p", total=5 * CHUNK_BYTES, progress=said.append) as writer:
        writer.add_extent([*slots.views, None])
        writer.commit()
    assert (said[-1].done, said[-1].total, said[-1].stored) == (5 * CHUNK_BYTES, 5 * CHUNK_BYTES, 4 * CHUNK_BYTES)
    assert said[-1].rate > 0
    assert said[-1].seconds_left == 0
    with open_reader(space, "p", progress=said.append) as reader:
        reader.read_part(reader.manifest.extents[0], empty_slots([CHUNK_BYTES] * 5).views)
    assert said[-1].what.startswith("reading p from")
    assert said[-1].done == said[-1].total == 5 * CHUNK_BYTES


def test_a_writer_is_cancelled_from_another_thread(open_tier: OpenTier) -> None:
    tier = open_tier()
    space = tier.space(PLAIN)
    seen = threading.Event()
    slots = Slots([noise(k) for k in range(8)])
    with open_writer(space, "c", progress=lambda _: seen.set()) as writer:

        def cancel_then() -> None:
            seen.wait(60)
            writer.cancel()

        canceller = threading.Thread(target=cancel_then)
        canceller.start()
        with pytest.raises(Cancelled):
            _write_for_ever(writer, slots)
        canceller.join()
    assert packs_of(tier) == []


def _write_for_ever(writer: SnapshotWriter, slots: Slots) -> None:
    while True:
        writer.add_extent(slots.views)


def test_a_budget_is_kept(open_tier: OpenTier) -> None:
    tier = open_tier(budget_bytes=9 * CHUNK_BYTES)
    space = tier.space(PLAIN)
    save(space, "one", [noise(k) for k in range(4)])
    with pytest.raises(NoRoom, match=r"may hold 18\.0 MiB"):
        save(space, "two", [noise(100 + k) for k in range(6)])
    assert [row.name for row in space.snapshots()] == ["one"]
    assert tier.usage().used < 5 * CHUNK_BYTES
    space.delete("one")
    assert collect(space).removed > 0
    save(space, "two", [noise(100 + k) for k in range(6)])
    assert verify(space).problems == ()


def test_two_agents_in_one_directory(open_tier: OpenTier, tmp_path: Path) -> None:
    open_tier()
    with pytest.raises(Busy, match="another agent"):
        open_tier(catalog=tmp_path / "other.db")


def test_the_catalog_is_made_anew(open_tier: OpenTier, tmp_path: Path) -> None:
    tier = open_tier()
    contents = [noise(k) for k in range(5)]
    save(tier.space(PLAIN), "one", contents, f=b"file")
    tier.close()
    (tmp_path / "catalog.db").write_bytes(b"this is no database" * 1000)
    for stray in tmp_path.glob("catalog.db-*"):
        stray.unlink()
    again = open_tier().space(PLAIN)
    assert [row.name for row in again.snapshots()] == ["one"]
    assert load(again, "one") == contents
    assert save(again, "two", contents) == 0, "what is there is known again"


def test_a_wiped_tier_is_told(open_tier: OpenTier, tmp_path: Path) -> None:
    tier = open_tier()
    save(tier.space(PLAIN), "precious", [noise(1)])
    tier.close()
    (tmp_path / "tier").rename(tmp_path / "elsewhere")
    with pytest.raises(TierWiped, match="default/precious"):
        open_tier()
    other = Tier(LocalMedium(tmp_path / "tier"), Catalog(tmp_path / "x.db"))
    other.open()
    other.close()
    other.catalog.close()
    with pytest.raises(TierWiped, match="another store"):
        open_tier()
    new = open_tier(accept_loss=True)
    assert new.space(PLAIN).snapshots() == []
    new.close()
    open_tier()


def test_a_snapshot_removed_behind_our_back_is_told(open_tier: OpenTier) -> None:
    tier = open_tier()
    save(tier.space(PLAIN), "one", [noise(1)])
    save(tier.space(PLAIN), "two", [noise(2)])
    tier.close()
    manifest_path(tier, "one").unlink()
    again = open_tier().space(PLAIN)
    assert again.last_changes.snapshots_gone == ["one"]
    assert [row.name for row in again.snapshots()] == ["two"]


def test_a_wrong_key_is_told(open_tier: OpenTier) -> None:
    tier = open_tier()
    save(tier.space(SEALED), "secret", [noise(1)])
    with pytest.raises(WrongKey, match="wrong key"):
        tier.space(keys_of(TenantName("default"), bytes(32)))
    tier.close()
    for keys in (PLAIN, keys_of(TenantName("default"), bytes(32))):
        again = open_tier()
        with pytest.raises(WrongKey, match="wrong key for tenant default"):
            again.space(keys)
        again.close()
    assert load(open_tier().space(SEALED), "secret") == [noise(1)]


def test_without_the_key_file_the_manifests_tell(open_tier: OpenTier, tmp_path: Path) -> None:
    tier = open_tier()
    save(tier.space(SEALED), "secret", [noise(1)])
    tier.close()
    manifest_path(tier, "x").parent.parent.joinpath("key").unlink()
    space = open_tier(catalog=tmp_path / "new.db").space(PLAIN)
    assert space.snapshots() == []
    assert "was written with the key" in " ".join(space.last_changes.problems)
    with pytest.raises(WrongKey, match="was written with the key"):
        open_reader(space, "secret")
    with pytest.raises(WrongKey):
        collect(space)


def test_nothing_of_the_content_is_on_the_disk_when_encrypted(open_tier: OpenTier) -> None:
    tier = open_tier()
    mark = b"a very secret sentence that must not be found"
    content = (mark * (CHUNK_BYTES // len(mark) + 1))[:CHUNK_BYTES]
    save(tier.space(SEALED), "s", [content], small=mark)
    tier.close()
    for path in tier.medium.root.rglob("*"):  # type: ignore[attr-defined]
        assert not path.is_file() or mark not in path.read_bytes()
        assert not path.is_file() or b"small" not in path.read_bytes()


def test_tenants_share_nothing(open_tier: OpenTier) -> None:
    tier = open_tier()
    one, two = (tier.space(keys_of(TenantName(name))) for name in ("one", "two"))
    assert save(one, "s", [noise(1)]) == save(two, "s", [noise(1)]) == CHUNK_BYTES
    two.delete("s")
    collect(two)
    assert load(one, "s") == [noise(1)]
    assert tier.tenants() == ["one", "two"]


def test_keys_from_files_and_commands(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(SECRET.hex() + "\n")
    path.chmod(0o600)
    assert secret_from_file(path) == SECRET
    assert secret_from_command(["cat", str(path)]) == SECRET
    path.write_bytes(SECRET)
    assert secret_from_file(path) == SECRET
    path.write_text("no key")
    with pytest.raises(BadInput, match="gives no key"):
        secret_from_file(path)
    with pytest.raises(BadInput, match="can't read"):
        secret_from_file(tmp_path / "none")
    with pytest.raises(BadInput, match="failed with status"):
        secret_from_command(["false"])
    with pytest.raises(BadInput, match="can't be run"):
        secret_from_command([str(tmp_path / "none")])
    with pytest.raises(BadInput, match="32"):
        keys_of(TenantName("t"), b"short")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_file_that_is_open_to_others_is_not_used(tmp_path: Path, mode: int) -> None:
    """Whoever can read it can read all snapshots, and make some up."""
    path = tmp_path / "key"
    path.write_bytes(SECRET)
    path.chmod(mode)
    with pytest.raises(BadInput, match="open to others") as refused:
        secret_from_file(path)
    assert refused.value.hint == f"chmod 600 {path}"
    path.chmod(0o400)
    assert secret_from_file(path) == SECRET


@pytest.mark.root
def test_a_key_file_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    os.chown(path, 65534, 65534)
    with pytest.raises(BadInput, match="belongs to user 65534"):
        secret_from_file(path)
