"""What is damaged is found, named, and never handed out; what can be healed is."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.store.rig import PLAIN, SEALED, OpenTier, load, manifest_path, noise, packs_of, save

from kybernate.model.errors import BadInput, NotFound
from kybernate.model.progress import Progress
from kybernate.model.snapshot_names import snapshot_name
from kybernate.model.types import CHUNK_BYTES, MIB
from kybernate.store import (
    Catalog,
    Keys,
    LocalMedium,
    Manifest,
    Needs,
    StoredExtent,
    StoredFile,
    Tier,
    collect,
    manifests,
    open_reader,
    packs,
    verify,
)
from kybernate.store.errors import Damaged, TooNew, WrongKey
from kybernate.store.media import Entry
from kybernate.store.packs import Codec, PackId, Record
from kybernate.store.tenants import ChunkId

KEYS = pytest.mark.parametrize("keys", [PLAIN, SEALED], ids=["plain", "encrypted"])
REFUSALS = (Damaged, TooNew, WrongKey)


def flip(path: Path, offset: int, bit: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ bit]))


@KEYS
def test_a_flipped_bit_in_a_chunk(open_tier: OpenTier, keys: Keys) -> None:
    tier = open_tier(pack_bytes=64 << 20)
    space = tier.space(keys)
    save(space, "hurt", [noise(1), noise(2)])
    save(space, "sound", [noise(3)])
    pack = next(path for path in packs_of(tier) if path.stat().st_size > 2 * CHUNK_BYTES)
    flip(pack, 4096 + CHUNK_BYTES // 2)
    with pytest.raises(Damaged, match=r"snapshot hurt in .* is damaged: chunk .* pack"):
        load(space, "hurt")
    assert load(space, "sound") == [noise(3)]
    report = verify(space)
    assert [problem.snapshots for problem in report.problems] == [("hurt",)]
    # New content is stored in full again, and heals the old snapshot.
    assert save(space, "again", [noise(1), noise(2)]) == CHUNK_BYTES
    assert load(space, "hurt") == [noise(1), noise(2)]
    assert [problem.snapshots for problem in verify(space).problems] == [()]
    collect(space, compact_below=0.99)
    assert load(space, "hurt") == load(space, "again") == [noise(1), noise(2)]


@KEYS
@pytest.mark.parametrize("small", [True, False])
def test_a_flipped_bit_anywhere_in_a_pack(open_tier: OpenTier, tmp_path: Path, keys: Keys, small: bool) -> None:
    """Header, content, index and trailer, with a catalog that doesn't know the pack yet."""
    tier = open_tier()
    content = noise(1, 20_000 if small else CHUNK_BYTES)
    save(tier.space(keys), "s", [content])
    tier.close()
    (pack,) = packs_of(tier, keys)
    size = pack.stat().st_size
    index = struct.unpack("<Q", pack.read_bytes()[-packs.TRAILER_BYTES :][:8])[0]
    for number, offset in enumerate(
        (0, 9, 17, 40, 4096, 4096 + len(content) - 1, index, index + 33, size - 70, size - 30, size - 9)
    ):
        flip(pack, offset, 0x80)
        again = open_tier(catalog=tmp_path / f"{number}.db")
        space = again.space(keys)
        with pytest.raises(REFUSALS):
            load(space, "s")
        assert verify(space).problems
        again.close()
        flip(pack, offset, 0x80)
    assert load(open_tier(catalog=tmp_path / "last.db").space(keys), "s") == [content]


@pytest.mark.parametrize("keep", [0, 1, 4095, 4096, 100_000, CHUNK_BYTES + 4096, -1, -4096])
def test_a_pack_that_is_cut_off(open_tier: OpenTier, tmp_path: Path, keep: int) -> None:
    tier = open_tier()
    save(tier.space(PLAIN), "s", [noise(1), noise(2)])
    (pack,) = packs_of(tier)
    whole = pack.read_bytes()
    pack.write_bytes(whole[:keep])
    space = tier.space(PLAIN)
    for known in (True, False):  # with the index in the catalog, and without
        if known and keep < 0:
            assert load(space, "s") == [noise(1), noise(2)], "as long as it can be read, it is"
        else:
            with pytest.raises(Damaged, match=r"s in .* is damaged"):
                load(space, "s")
        problems = verify(space).problems
        assert any("s" in problem.snapshots for problem in problems)
        tier.close()
        tier = open_tier(catalog=tmp_path / "new.db")
        space = tier.space(PLAIN)
    pack.write_bytes(whole)
    assert load(space, "s") == [noise(1), noise(2)]


def test_a_pack_that_is_gone(open_tier: OpenTier) -> None:
    tier = open_tier()
    space = tier.space(PLAIN)
    save(space, "one", [noise(k) for k in range(7)])
    save(space, "two", [noise(100)])
    lost = packs_of(tier)[0]
    lost.unlink()
    hurt = [name for name in ("one", "two") if _fails(lambda name=name: load(space, name))]  # type: ignore[misc]
    assert len(hurt) == 1
    assert [problem.snapshots for problem in verify(space).problems] == [tuple(hurt)]
    assert "in no pack" in verify(space).problems[0].text


class Overtaken(LocalMedium):
    """Another agent deletes a snapshot right after we listed it."""

    victim: Path | None = None

    def entries(self, prefix: str) -> Iterator[Entry]:
        yield from list(super().entries(prefix))
        if self.victim is not None and prefix.endswith("/manifests/"):
            self.victim.unlink()
            self.victim = None


def test_a_snapshot_that_is_deleted_meanwhile_is_no_problem(tmp_path: Path) -> None:
    """Between the listing and the reading of its manifest, and while its packs are read: these are collected, too."""
    book = Catalog(tmp_path / "catalog.db")
    medium = Overtaken(tmp_path / "tier", pack_bytes=8 * MIB, threads=4)
    tier = Tier(medium, book)
    tier.open()
    space = tier.space(PLAIN)
    for number, name in enumerate(("kept", "listed", "read")):
        before = set(packs_of(tier))
        save(space, name, [noise(10 * number + k) for k in range(5)])
        theirs = set(packs_of(tier)) - before
    medium.victim = manifest_path(tier, "listed")

    def collected(_: Progress) -> None:
        """With the first bytes: most packs are still to be read."""
        manifest_path(tier, "read").unlink(missing_ok=True)
        for pack in theirs:
            pack.unlink(missing_ok=True)

    found = verify(space, progress=collected)
    assert found.problems == ()
    assert found.snapshots == 2
    assert medium.victim is None
    with pytest.raises(NotFound):
        verify(space, ["listed"])
    assert load(space, "kept") == [noise(k) for k in range(5)]
    tier.close()
    book.close()


def _fails(action: Callable[[], object]) -> bool:
    try:
        action()
    except Damaged:
        return True
    return False


def test_a_writer_whose_shared_pack_vanishes(open_tier: OpenTier) -> None:
    tier = open_tier()
    space = tier.space(PLAIN)
    save(space, "one", [noise(1)])
    (pack,) = packs_of(tier)
    pack.unlink()
    with pytest.raises(Damaged, match="have gone"):
        save(space, "two", [noise(1)])
    assert save(space, "two", [noise(1)]) == CHUNK_BYTES
    assert load(space, "one") == [noise(1)], "healed"


def test_a_pack_from_a_newer_version(open_tier: OpenTier, tmp_path: Path) -> None:
    tier = open_tier()
    save(tier.space(PLAIN), "s", [noise(1)])
    tier.close()
    (pack,) = packs_of(tier)
    head = bytearray(pack.read_bytes()[:48])
    head[8:12] = struct.pack("<I", packs.VERSION + 1)
    with pack.open("r+b") as file:
        file.write(head + blake3(head).digest())
    space = open_tier(catalog=tmp_path / "new.db").space(PLAIN)
    assert "reads up to 1" in space.last_changes.problems[0]
    with pytest.raises(TooNew, match="what a newer version wrote: pack"):
        load(space, "s")
    assert pack.exists()
    assert collect(space).removed == 0, "what a newer version wrote isn't ours to remove"
    assert pack.exists()


def test_a_manifest_from_a_newer_version(open_tier: OpenTier) -> None:
    tier = open_tier()
    space = tier.space(PLAIN)
    save(space, "s", [noise(1)])
    path = manifest_path(tier, "s")
    content = bytearray(path.read_bytes())
    content[8:12] = struct.pack("<I", manifests.VERSION + 1)
    path.write_bytes(content)
    with pytest.raises(TooNew, match="update Kybernate"):
        open_reader(space, "s")
    with pytest.raises(TooNew):
        collect(space)
    assert [problem.snapshots for problem in verify(space).problems] == [("s",)]


@KEYS
def test_a_damaged_manifest_stops_collection(open_tier: OpenTier, keys: Keys) -> None:
    tier = open_tier()
    space = tier.space(keys)
    save(space, "s", [noise(1)])
    save(space, "t", [noise(2)])
    path = manifest_path(tier, "s", keys)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Damaged, match="manifest of snapshot s is damaged"):
        open_reader(space, "s")
    with pytest.raises(Damaged):
        collect(space)
    assert load(space, "t") == [noise(2)]
    space.delete("s")
    collect(space)
    assert load(space, "t") == [noise(2)]


def test_a_manifest_of_absurd_size_is_refused_unread(open_tier: OpenTier) -> None:
    """The file has holes only, so that this test costs nothing: reading it would."""
    tier = open_tier()
    space = tier.space(PLAIN)
    save(space, "s", [noise(1)])
    with manifest_path(tier, "s").open("r+b") as file:
        file.truncate(manifests.BYTES_MAX + 1)
    with pytest.raises(
        Damaged, match=f"has {manifests.BYTES_MAX + 1} bytes, and at most {manifests.BYTES_MAX} make sense"
    ):
        open_reader(space, "s")
    assert any("make sense" in problem for problem in space.refresh().problems)
    space.delete("s")


def test_more_chunks_than_a_manifest_can_name_are_refused_before_it_is_written() -> None:
    table = bytes(32) * (manifests.BYTES_MAX // 32)
    large = Manifest(snapshot_name("large"), "00" * 16, 0.0, (), (), table, {}, {}, Needs(), ())
    with pytest.raises(BadInput, match="more than a manifest can name"):
        manifests.encode(large, PLAIN)


def test_a_renamed_manifest_is_found_out(open_tier: OpenTier) -> None:
    tier = open_tier()
    space = tier.space(PLAIN)
    save(space, "old", [noise(1)])
    manifest_path(tier, "old").rename(manifest_path(tier, "new"))
    with pytest.raises(Damaged, match="renamed"):
        open_reader(space, "new")


# -- fuzz --------------------------------------------------------------------------------------------------------------

IDS = st.binary(min_size=32, max_size=32)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def some_manifests(draw: st.DrawFn) -> Manifest:
    table = b"".join(draw(st.lists(IDS, max_size=6)))
    count = len(table) // 32
    extents, files = [], []
    for number in range(draw(st.integers(0, 3))):
        first = draw(st.integers(0, count))
        size = draw(st.integers(0, (count - first) * CHUNK_BYTES))
        if draw(st.booleans()):
            extents.append(
                StoredExtent(first=first, size=size, about=draw(st.dictionaries(st.text(max_size=5), JSON, max_size=2)))
            )
        elif draw(st.booleans()):
            files.append(StoredFile(path=f"a/{number}", mode=0o644, first=first, size=size))
        else:
            cuts = tuple(draw(st.lists(st.integers(1, CHUNK_BYTES), max_size=count - first)))
            files.append(StoredFile(path=f"a/{number}", mode=0o644, first=first, size=sum(cuts), cuts=cuts))
    return Manifest(
        name=snapshot_name("fuzz"),
        uid=draw(st.binary(min_size=16, max_size=16)).hex(),
        created=draw(st.floats(0, 1e12)),
        extents=tuple(extents),
        files=tuple(files),
        table=table,
        state=draw(st.dictionaries(st.text(max_size=5), JSON, max_size=3)),
        labels=draw(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2)),
        needs=Needs(
            driver=draw(st.none() | st.text(max_size=9)),
            more=draw(st.dictionaries(st.text(max_size=5), JSON, max_size=2)),
        ),
        packs=tuple(PackId(p.hex()) for p in draw(st.lists(st.binary(min_size=16, max_size=16), max_size=3))),
    )


@given(manifest=some_manifests(), keys=st.sampled_from([PLAIN, SEALED]))
def test_manifests_come_back_as_they_were(manifest: Manifest, keys: Keys) -> None:
    assert manifests.decode(manifests.encode(manifest, keys), keys, name=manifest.name) == manifest


@given(
    manifest=some_manifests(),
    keys=st.sampled_from([PLAIN, SEALED]),
    place=st.floats(0, 1, exclude_max=True),
    bits=st.integers(1, 255),
    cut=st.booleans(),
)
def test_changed_manifests_are_refused(manifest: Manifest, keys: Keys, place: float, bits: int, cut: bool) -> None:
    content = bytearray(manifests.encode(manifest, keys))
    at = int(place * len(content))
    if cut:
        del content[at:]
    else:
        content[at] ^= bits
    with pytest.raises(REFUSALS):
        manifests.decode(bytes(content), keys, name=manifest.name)


@given(
    text=st.binary(max_size=400) | JSON.map(lambda value: json.dumps(value).encode()),
    table=st.binary(max_size=100),
)
def test_manifests_that_make_no_sense_are_refused(text: bytes, table: bytes) -> None:
    """With a right seal: as from a faulty or hostile writer that has the key."""
    head = struct.pack(
        "<8sII16s16s12sII", b"\x89KYBSNP\n", 1, 0, bytes(16), PLAIN.fingerprint, bytes(12), len(text), len(table) // 32
    )
    try:
        manifest = manifests.decode(
            head + text + table + PLAIN.seal(head, text + table), PLAIN, name=snapshot_name("fuzz")
        )
    except REFUSALS:
        return
    assert manifest.name == "fuzz"


@pytest.mark.parametrize("cuts", [(1, 2), (0, 5), (-1, 6), (CHUNK_BYTES + 1,)], ids=str)
def test_a_file_cut_into_other_than_itself_is_refused(cuts: tuple[int, ...]) -> None:
    file = {"path": "a", "first": 0, "size": 5, "cuts": cuts}
    text, table = json.dumps({"name": "m", "created": 0, "files": [file]}).encode(), bytes(64)
    head = struct.pack(
        "<8sII16s16s12sII", b"\x89KYBSNP\n", 2, 0, bytes(16), PLAIN.fingerprint, bytes(12), len(text), len(table) // 32
    )
    with pytest.raises(Damaged, match="makes no sense"):
        manifests.decode(head + text + table + PLAIN.seal(head, text + table), PLAIN, name=snapshot_name("m"))


@pytest.mark.parametrize("path", ["../../etc/cron.d/x", "/etc/passwd", "a/../b", "", "."])
def test_a_hostile_manifest_writes_nothing_outside(path: str) -> None:
    good = Manifest(snapshot_name("m"), bytes(16).hex(), 0.0, (), (), b"", {}, {}, Needs(), ())
    hostile = StoredFile.model_construct(path=path, mode=0o600, first=0, size=0)
    content = manifests.encode(Manifest(good.name, good.uid, 0.0, (), (hostile,), b"", {}, {}, Needs(), ()), PLAIN)
    with pytest.raises(Damaged, match="makes no sense"):
        manifests.decode(content, PLAIN, name=good.name)


RECORDS = st.builds(
    lambda id_, raw, nonce: Record(ChunkId(id_), packs.HEADER_BYTES, raw, raw, Codec.RAW, nonce, bytes(16)),
    IDS,
    st.integers(1, 4096),
    st.binary(min_size=12, max_size=12),
)


@given(
    records=st.lists(RECORDS, max_size=50),
    keys=st.sampled_from([PLAIN, SEALED]),
    place=st.floats(0, 1, exclude_max=True),
    bits=st.integers(0, 255),
)
def test_indices_come_back_or_are_refused(records: list[Record], keys: Keys, place: float, bits: int) -> None:
    pack = PackId("0f" * 16)
    at = packs.HEADER_BYTES + 4096
    end = bytearray(packs.encode_end(records, at=at, header=packs.encode_header(pack, keys), keys=keys))
    where = int(place * len(end))
    end[where] ^= bits
    size = at + len(end)
    try:
        trailer = packs.decode_trailer(bytes(end[-packs.TRAILER_BYTES :]), pack, size)
        found = packs.decode_index(bytes(end[: trailer.index_bytes]), trailer, pack, keys)
    except REFUSALS:
        assert bits
        return
    assert found == records


@given(content=st.binary(max_size=300))
def test_any_bytes_are_no_pack(content: bytes) -> None:
    pack = PackId("0f" * 16)
    with pytest.raises(REFUSALS):
        packs.check_header(content, pack, PLAIN)
    with pytest.raises(REFUSALS):
        packs.decode_trailer(content[-packs.TRAILER_BYTES :], pack, len(content))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(data=st.data())
def test_a_pack_changed_anywhere_never_gives_wrong_content(
    open_tier: OpenTier, tmp_path: Path, data: st.DataObject
) -> None:
    """The file as a whole, with several changes at once."""
    root = Path(tempfile.mkdtemp(dir=tmp_path)) / "tier"
    tier = open_tier(root, catalog=root.with_suffix(".db"))
    keys = data.draw(st.sampled_from([PLAIN, SEALED]))
    contents = [noise(1, 70_000)]
    files = {"f": noise(2, 300)}
    save(tier.space(keys), "s", contents, **files)
    tier.close()
    (pack,) = packs_of(tier, keys)
    size = pack.stat().st_size
    for _ in range(data.draw(st.integers(1, 4))):
        flip(pack, data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, 255)))
    if data.draw(st.booleans()):
        with pack.open("r+b") as file:
            file.truncate(data.draw(st.integers(0, size)))
    again = open_tier(root, catalog=root.with_suffix(".new"))
    try:
        got = load(again.space(keys), "s")
        with open_reader(again.space(keys), "s") as reader:
            assert reader.read_bytes("f") == files["f"]
        assert got == contents, "the changes hit padding, or undid each other"
    except REFUSALS:
        pass
    finally:
        again.close()
        again.catalog.close()
        tier.catalog.close()
