"""Snapshots in a bucket of a real S3 server: round trips, an unreliable network, damage, and several agents at once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import obstore
import pytest
from tests.store import worker
from tests.store.rig import PLAIN, SEALED, Slots, load, noise, save
from tests.store.server import Mode, Proxy, Server, client, options

from kybernate.model.errors import BadInput, Busy, Cancelled, Conflict, KybernateError
from kybernate.model.types import CHUNK_BYTES, MIB
from kybernate.store import Catalog, Keys, ObjectMedium, Tier, collect, manifests, open_reader, open_writer, verify
from kybernate.store.errors import Damaged, TierAway, TierWiped, WrongKey
from kybernate.store.leases import Leases
from kybernate.store.space_catalog import SpaceCatalog
from kybernate.store.tenants import TenantName

pytestmark = pytest.mark.timeout(600)  # the first test may build the server

OpenAgent = Callable[..., Tier]


@pytest.mark.parametrize("keys", [PLAIN, SEALED], ids=["plain", "encrypted"])
@pytest.mark.parametrize("kind", ["s3", "file"])
def test_what_goes_in_comes_out_elsewhere(open_agent: OpenAgent, tmp_path: Path, keys: Keys, kind: str) -> None:
    url = None
    if kind == "file":
        (tmp_path / "network").mkdir()
        url = f"file://{tmp_path}/network"
    one = open_agent(url=url).space(keys)
    contents = [noise(k) for k in range(9)] + [None, b"text " * 400_000]
    contents[-1] = (contents[-1] or b"")[:CHUNK_BYTES].ljust(CHUNK_BYTES, b".")
    (tmp_path / "dump").mkdir()
    for k in range(20):
        (tmp_path / "dump" / f"core-{k}.img").write_bytes(noise(100 + k, 3000))
    slots = Slots([c or b"" for c in contents])
    with open_writer(one, "s") as writer:
        writer.add_extent([None if c is None else v for c, v in zip(contents, slots.views, strict=True)])
        writer.add_directory("criu", tmp_path / "dump")
        writer.commit(state={"a": 1})
    # Another agent, with an empty disk.
    two = open_agent(url=url).space(keys)
    assert [row.name for row in two.snapshots()] == ["s"]
    assert load(two, "s") == [c if c is not None else bytes(CHUNK_BYTES) for c in contents]
    with open_reader(two, "s") as reader:
        reader.extract(tmp_path / "out")
    assert (tmp_path / "out/criu/core-7.img").read_bytes() == noise(107, 3000)
    assert verify(two).problems == ()
    assert save(two, "again", contents) == 0, "what the other agent has stored is shared"


def test_what_is_absurdly_large_is_refused_unread(open_agent: OpenAgent, tmp_path: Path) -> None:
    """A hole in a file, so that this test costs nothing: reading it would."""
    root = tmp_path / "network"
    root.mkdir()
    space = open_agent(url=f"file://{root}").space(PLAIN)
    save(space, "s", [noise(1)])
    with (root / f"{PLAIN.tenant}/manifests/s").open("r+b") as file:
        file.truncate(manifests.BYTES_MAX + 1)
    with pytest.raises(Damaged, match=f"{manifests.BYTES_MAX + 1} bytes, and at most {manifests.BYTES_MAX} make sense"):
        open_reader(space, "s")


def test_a_server_is_not_read_beyond_what_makes_sense(server: Server, bucket: str, open_agent: OpenAgent) -> None:
    medium = open_agent().medium
    obstore.put(client(server.port, bucket), "snapshots/odd", bytes(4096))
    assert medium.get("odd", maximum=4096) == bytes(4096)
    with pytest.raises(Damaged, match=r"odd in .* has 4096 bytes, and at most 4095 make sense"):
        medium.get("odd", maximum=4095)


def test_no_such_bucket(open_agent: OpenAgent) -> None:
    with pytest.raises(BadInput, match="there is no bucket"):
        open_agent(url="s3://nobody-has-made-this")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x/y",
        "s3://",
        "s3://b/../c",
        "file://relative",
        "file:///nowhere/at/all",
        "s3://u:p@b/x",
        "http://h/b",
        "s3://b?x=1",
    ],
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(BadInput):
        ObjectMedium(url)


def test_unknown_options_and_wrong_credentials(server: Server, bucket: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="can't use"):
        ObjectMedium(f"s3://{bucket}", options={"no_such_option": 1})
    wrong = ObjectMedium(f"s3://{bucket}", options={**options(server.port), "secret_access_key": "wrong"}, patience_s=5)
    book = Catalog(tmp_path / "c.db")
    with pytest.raises(KybernateError, match="refuses"):
        Tier(wrong, book).open()
    book.close()


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.STALL, Mode.ERROR])
def test_a_server_that_is_away(open_agent: OpenAgent, proxy: Proxy, mode: Mode) -> None:
    tier = open_agent(proxy.port, patience_s=2)
    space = tier.space(PLAIN)
    save(space, "before", [noise(1)])
    proxy.set(mode)
    with pytest.raises(TierAway, match="tried for 2 s"):
        save(space, "during", [noise(2)])
    with pytest.raises(TierAway):
        load(space, "before")
    proxy.set(Mode.PASS)
    assert load(space, "before") == [noise(1)]
    space.refresh()
    assert [row.name for row in space.snapshots()] == ["before"]
    save(space, "during", [noise(2)])
    assert verify(space).problems == ()


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.ERROR])
def test_a_server_that_is_away_for_a_moment_is_waited_for(open_agent: OpenAgent, proxy: Proxy, mode: Mode) -> None:
    space = open_agent(proxy.port, patience_s=60).space(PLAIN)
    proxy.set(mode)
    before = proxy.connections
    slots = Slots([noise(k) for k in range(6)])
    done = threading.Event()

    def back() -> None:
        while proxy.connections < before + 5 and not done.wait(0.01):
            pass
        proxy.set(Mode.PASS)

    helper = threading.Thread(target=back)
    helper.start()
    with open_writer(space, "s") as writer:
        writer.add_extent(slots.views)
        writer.commit()
    done.set()
    helper.join()
    assert load(space, "s") == slots.contents()


def test_connections_that_break_half_way(open_agent: OpenAgent, proxy: Proxy) -> None:
    """Each breaks after 3 MB, in the middle of a part or an answer, until some have; then they hold."""
    space = open_agent(proxy.port, patience_s=60).space(PLAIN)
    slots = Slots([noise(k) for k in range(8)])
    stop = threading.Event()

    def mend(cuts: int) -> None:
        while proxy.cuts < cuts and not stop.wait(0.01):
            pass
        proxy.set(Mode.PASS)

    for action in ("write", "read"):
        wanted = proxy.cuts + 4
        proxy.set(Mode.CUT, cut_after=1_500_000)
        helper = threading.Thread(target=mend, args=(wanted,))
        helper.start()
        if action == "write":
            with open_writer(space, "s") as writer:
                writer.add_extent(slots.views)
                writer.commit()
        else:
            assert load(space, "s") == slots.contents()
        helper.join()
        assert proxy.cuts >= wanted
    assert verify(space).problems == ()


def test_an_upload_goes_on_where_it_was_lost(open_agent: OpenAgent, proxy: Proxy) -> None:
    contents = [noise(k) for k in range(24)]
    space = open_agent(proxy.port, patience_s=1).space(PLAIN)
    slots = Slots(contents)
    with pytest.raises(TierAway), open_writer(space, "s") as writer:
        _lose(writer.add_extent, slots, space.catalog, proxy, lambda: writer.commit())
    proxy.set(Mode.PASS)
    other = open_agent()  # a new agent, which knows nothing
    written = save(other.space(PLAIN), "s", contents)
    assert 0 < written < len(contents) * CHUNK_BYTES, "the packs that had arrived are used"
    assert load(other.space(PLAIN), "s") == contents


def _lose(
    add: Callable[..., object], slots: Slots, catalog: SpaceCatalog, proxy: Proxy, commit: Callable[[], object]
) -> None:
    """Give all chunks to a writer; the server goes away once the first pack has arrived."""
    add(slots.views[:12])
    deadline = time.monotonic() + 60
    while not catalog.packs():
        assert time.monotonic() < deadline
    proxy.set(Mode.REFUSE)
    add(slots.views[12:])
    commit()


def test_a_slow_upload_is_cancelled_soon(open_agent: OpenAgent, proxy: Proxy) -> None:
    space = open_agent(proxy.port).space(PLAIN)
    slots = Slots([noise(k) for k in range(16)])
    proxy.set(Mode.SLOW, bytes_per_s=4e6)
    with open_writer(space, "s") as writer:
        canceller = threading.Timer(0.5, writer.cancel)
        canceller.start()
        with pytest.raises(Cancelled):
            _write_all(writer.add_extent, slots, lambda: writer.commit())
        canceller.join()
        proxy.set(Mode.PASS)  # what is under way ends
    space.refresh()
    assert space.snapshots() == []


def _write_all(add: Callable[..., object], slots: Slots, commit: Callable[[], object]) -> None:
    for _ in range(50):
        add(slots.views)
    commit()


def test_objects_that_are_deleted_changed_or_cut_off(open_agent: OpenAgent, server: Server, bucket: str) -> None:
    contents = [noise(k) for k in range(9)]
    space = open_agent().space(PLAIN)
    save(space, "s", contents)
    raw = client(server.port, bucket)
    names = [meta["path"] for batch in obstore.list(raw, "snapshots/default/packs") for meta in batch]
    assert len(names) >= 3
    for name, change in zip(names, (lambda c: None, _flipped, lambda c: c[: len(c) // 2]), strict=False):
        whole = bytes(obstore.get(raw, name).bytes())
        if (changed := change(whole)) is None:
            obstore.delete(raw, name)
        else:
            obstore.put(raw, name, changed)
        for each in (space, open_agent().space(PLAIN)):
            with pytest.raises(Damaged, match=r"s in s3://.* is damaged"):
                load(each, "s")
            assert any("s" in problem.snapshots for problem in verify(each).problems)
        obstore.put(raw, name, whole)
        assert load(open_agent().space(PLAIN), "s") == contents


def _flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[5000] ^= 4
    return bytes(changed)


def test_a_wiped_bucket_is_told(open_agent: OpenAgent, server: Server, bucket: str, tmp_path: Path) -> None:
    tier = open_agent(catalog=tmp_path / "mine.db")
    save(tier.space(PLAIN), "precious", [noise(1)])
    tier.close()
    raw = client(server.port, bucket)
    for path in [meta["path"] for batch in obstore.list(raw) for meta in batch]:
        obstore.delete(raw, path)
    with pytest.raises(TierWiped, match="default/precious"):
        open_agent(catalog=tmp_path / "mine.db")


def test_a_wrong_key(open_agent: OpenAgent) -> None:
    save(open_agent().space(SEALED), "s", [noise(1)])
    with pytest.raises(WrongKey, match="none was given"):
        open_agent().space(PLAIN)


# -- several agents ----------------------------------------------------------------------------------------------------


def test_of_two_agents_with_one_name_one_wins(open_agent: OpenAgent) -> None:
    one, two = open_agent().space(PLAIN), open_agent().space(PLAIN)
    with open_writer(one, "name") as first, open_writer(two, "name") as second:
        first.add_bytes("f", b"first")
        second.add_bytes("f", b"second")
        first.commit()
        with pytest.raises(Conflict, match="already"):
            second.commit()
    with open_reader(two, "name") as reader:
        assert reader.read_bytes("f") == b"first"


def test_two_new_agents_make_one_tier(open_agent: OpenAgent) -> None:
    tiers: list[Tier] = []
    threads = [threading.Thread(target=lambda: tiers.append(open_agent())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tier.store for tier in tiers}) == 1
    assert len(tiers) == 4


def test_nobody_collects_while_another_writes(open_agent: OpenAgent) -> None:
    one, two = open_agent().space(PLAIN), open_agent().space(PLAIN)
    save(one, "old", [noise(1)])
    one.delete("old")
    with open_writer(two, "new") as writer:
        with pytest.raises(Busy, match="another agent writes"):
            collect(one)
        collect(two)  # its own writers it knows
        slots = Slots([noise(1)])
        writer.add_extent(slots.views)
        writer.commit()
    assert load(one, "new") == [noise(1)]
    collect(one)
    assert load(two, "new") == [noise(1)]


def test_nobody_writes_while_another_collects(open_agent: OpenAgent) -> None:
    one, two = open_agent().space(PLAIN), open_agent().space(PLAIN)
    sweep = one.leases.sweep()
    with pytest.raises(Busy, match="collects garbage"):
        open_writer(two, "x")
    with pytest.raises(Busy, match="collects garbage"):
        collect(two)
    sweep.release()
    save(two, "x", [noise(1)])


def test_leases_of_the_dead_become_stale(open_agent: OpenAgent) -> None:
    medium = open_agent().medium
    dead = Leases(medium, TenantName("t"), stale_s=4.0, touch_s=1000)  # S3 tells times in whole seconds
    alive = Leases(medium, TenantName("t"), stale_s=4.0, touch_s=0.5)
    lease = dead.acquire()
    with pytest.raises(Busy, match="process"):
        alive.sweep()
    _wait_until(lambda: _works(lambda: alive.sweep().release()))
    with pytest.raises(Busy, match="stood still"):
        lease.check()
    sweep = dead.sweep()
    _wait_until(lambda: _works(lambda: alive.acquire().release()))
    with pytest.raises(Busy, match="stood still"):
        sweep.check()
    kept = alive.acquire()
    deadline = time.monotonic() + 6
    while time.monotonic() < deadline:
        assert not _works(lambda: dead.sweep().release()), "one that is touched stays"
    kept.check()
    kept.release()
    dead.close()
    alive.close()


DIES = """
import os, sys
from kybernate.store import ObjectMedium
from kybernate.store.leases import Leases
from kybernate.store.tenants import TenantName
leases = Leases(ObjectMedium(sys.argv[1], options=eval(sys.argv[2])), TenantName("default"))
getattr(leases, sys.argv[3])()
os._exit(0)
"""


@pytest.mark.parametrize("doing", ["acquire", "sweep"])
def test_who_died_on_this_machine_is_not_waited_for(
    open_agent: OpenAgent, server: Server, bucket: str, doing: str
) -> None:
    """Killed while it wrote, or while it collected: its next life stores and collects at once."""
    space = open_agent().space(PLAIN)
    where = [f"s3://{bucket}/snapshots", repr(options(server.port)), doing]
    subprocess.run([sys.executable, "-c", DIES, *where], check=True)
    assert space.leases._there(), "it left something"
    save(space, "new", [noise(1)])
    collect(space)
    assert not space.leases._there()


def test_a_lease_that_could_not_be_removed_hinders_nobody_here(open_agent: OpenAgent, proxy: Proxy) -> None:
    space = open_agent(proxy.port, patience_s=0.2).space(PLAIN)
    lease = space.leases.acquire()
    proxy.set(Mode.REFUSE)
    lease.release()
    proxy.set(Mode.PASS)
    collect(space)
    assert not space.leases._there()


def test_a_lease_that_could_not_be_removed_soon_hinders_nobody_elsewhere(open_agent: OpenAgent, proxy: Proxy) -> None:
    space = open_agent(proxy.port, patience_s=0.2).space(PLAIN)
    another = Leases(open_agent().medium, PLAIN.tenant)
    lease = space.leases.acquire()
    proxy.set(Mode.REFUSE)
    lease.release()
    proxy.set(Mode.PASS)
    assert not _works(lambda: another.sweep().release()), "for all it knows"
    _wait_until(lambda: _works(lambda: another.sweep().release()))
    another.close()


def _works(action: Callable[[], object]) -> bool:
    try:
        action()
    except Busy:
        return False
    return True


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline


def test_two_agents_at_work_break_nothing(open_agent: OpenAgent) -> None:
    """Both store, delete and collect on one bucket for a while; whatever is committed stays whole."""
    kept: set[str] = set()
    lock = threading.Lock()
    failures: list[BaseException] = []
    end = time.monotonic() + 12

    def work(tier: Tier, who: int) -> None:
        try:
            space = tier.space(PLAIN)
            number = 0
            while time.monotonic() < end:
                name = f"s-{who}-{number}"
                number += 1
                if not _works(lambda name=name: worker.store(space, name)):  # type: ignore[misc]
                    continue
                if number % 3 == 0:
                    space.delete(name)
                    _works(lambda: collect(space, compact_below=0.9))
                    continue
                with lock:
                    kept.add(name)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=work, args=(open_agent(), who)) for who in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    third = open_agent().space(PLAIN)
    assert {str(row.name) for row in third.snapshots()} == kept
    assert kept
    assert verify(third).problems == ()
    assert all(worker.matches(third, name) for name in sorted(kept)[:10])
    collect(third)
    assert verify(third).problems == ()
    assert third.medium.pack_bytes == 8 * MIB
