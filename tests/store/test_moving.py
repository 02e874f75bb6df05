"""Snapshots between tiers, with a bounded amount of memory."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.store.rig import PLAIN, SEALED, OpenTier, Slots, load, noise, packs_of, save
from tests.store.server import Mode, Proxy

from kybernate.model.errors import BadInput, Cancelled, Conflict, NoRoom, NotFound
from kybernate.model.progress import Progress
from kybernate.model.types import CHUNK_BYTES
from kybernate.store import Keys, Needs, Step, Tier, collect, copy, keys_of, move, open_reader, open_writer, verify
from kybernate.store.errors import Damaged, TierAway
from kybernate.store.tenants import TenantName

pytestmark = pytest.mark.timeout(600)

OpenAgent = Callable[..., Tier]
SHRINKS = (b"weights " * 32 + bytes(256)) * (CHUNK_BYTES // 512)


@pytest.mark.parametrize("keys", [PLAIN, SEALED], ids=["plain", "encrypted"])
def test_down_and_up_again(open_tier: OpenTier, open_agent: OpenAgent, keys: Keys) -> None:
    near_tier = open_tier(compress_below=0.0)
    near, far = near_tier.space(keys), open_agent().space(keys)
    contents = [noise(1), SHRINKS, None, noise(2), noise(1), noise(3, 50_000)]
    slots = Slots([c or b"" for c in contents])
    with open_writer(near, "s") as writer:
        views = [None if c is None else v for c, v in zip(contents, slots.views, strict=True)]
        writer.add_extent(views, size=5 * CHUNK_BYTES + 50_000, about={"gpu": "GPU-1"})
        writer.add_bytes("f", b"file" * 100)
        original = writer.commit(state={"x": 1}, needs=Needs(driver="1"), labels={"a": "b"})
    said: list[Progress] = []
    moved = move(near, far, "s", progress=said.append)
    assert (said[-1].done, said[-1].total) == (original.size, original.size)
    assert said[-1].stored < 4 * CHUNK_BYTES, "compressed on the way"
    assert (moved.uid, moved.created, moved.state, moved.extents) == (
        original.uid,
        original.created,
        {"x": 1},
        original.extents,
    )
    with pytest.raises(NotFound):
        open_reader(near, "s")
    collect(near)
    assert packs_of(near_tier, keys) == []
    wanted = [c if c is not None else bytes(CHUNK_BYTES) for c in contents]
    assert load(far, "s") == wanted
    copy(far, near, "s")
    assert load(near, "s") == load(far, "s") == wanted
    assert copy(far, near, "s").uid == original.uid, "it is there already"
    with open_reader(near, "s") as reader:
        assert reader.read_bytes("f") == b"file" * 100
        assert reader.manifest.needs.driver == "1"
    assert verify(near).problems == verify(far).problems == ()


def test_only_what_is_not_there_is_moved(open_tier: OpenTier, open_agent: OpenAgent) -> None:
    near, far = open_tier().space(PLAIN), open_agent().space(PLAIN)
    contents = [noise(k) for k in range(6)]
    save(near, "one", contents)
    copy(near, far, "one")
    save(near, "two", [*contents[1:], noise(100)])
    said: list[Progress] = []
    copy(near, far, "two", progress=said.append)
    assert said[-1].stored == CHUNK_BYTES
    assert load(far, "two") == [*contents[1:], noise(100)]


def test_another_snapshot_of_that_name(open_tier: OpenTier, open_agent: OpenAgent) -> None:
    near, far_tier = open_tier().space(PLAIN), open_agent()
    far = far_tier.space(PLAIN)
    save(near, "s", [noise(1)])
    save(far, "s", [noise(2)])
    with pytest.raises(Conflict, match="already"):
        move(near, far, "s")
    assert load(near, "s") == [noise(1)]
    assert load(far, "s") == [noise(2)]
    with pytest.raises(NotFound):
        move(near, far, "none")
    with pytest.raises(BadInput, match="another tenant or key"):
        move(near, far_tier.space(keys_of(TenantName("other"))), "s")


def test_a_damaged_original_is_not_moved(open_tier: OpenTier, open_agent: OpenAgent) -> None:
    near_tier = open_tier()
    near, far = near_tier.space(PLAIN), open_agent().space(PLAIN)
    save(near, "s", [noise(1), noise(2)])
    (pack,) = packs_of(near_tier)
    content = bytearray(pack.read_bytes())
    content[CHUNK_BYTES] ^= 1
    pack.write_bytes(content)
    with pytest.raises(Damaged, match=r"s in .* is damaged"):
        move(near, far, "s")
    assert [row.name for row in near.snapshots()] == ["s"]
    far.refresh()
    assert far.snapshots() == []


def test_no_room_at_the_target(open_tier: OpenTier, open_agent: OpenAgent) -> None:
    near_tier = open_tier(budget_bytes=4 * CHUNK_BYTES)
    near, far = near_tier.space(PLAIN), open_agent().space(PLAIN)
    save(far, "s", [noise(k) for k in range(8)])
    with pytest.raises(NoRoom):
        move(far, near, "s")
    assert near.snapshots() == []
    assert near_tier.usage().used == 0
    assert len(load(far, "s")) == 8


def test_a_move_is_cancelled_and_done_again(open_tier: OpenTier, open_agent: OpenAgent) -> None:
    near, far = open_tier().space(PLAIN), open_agent().space(PLAIN)
    contents = [noise(k) for k in range(20)]
    save(near, "s", contents)
    step = Step()
    with pytest.raises(Cancelled):
        move(near, far, "s", progress=lambda _: step.cancel(), step=step)
    assert [row.name for row in near.snapshots()] == ["s"]
    far.refresh()
    assert far.snapshots() == []
    move(near, far, "s")
    assert load(far, "s") == contents


def test_a_move_goes_on_after_the_server_was_away(open_tier: OpenTier, open_agent: OpenAgent, proxy: Proxy) -> None:
    near, far = open_tier().space(PLAIN), open_agent(proxy.port, patience_s=1).space(PLAIN)
    contents = [noise(k) for k in range(24)]
    save(near, "s", contents)

    over = threading.Event()

    def watch() -> None:
        while not far.catalog.packs() and not over.wait(0.001):
            pass
        proxy.set(Mode.REFUSE)

    proxy.set(Mode.SLOW, bytes_per_s=2e7)
    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(TierAway):
        move(near, far, "s")
    over.set()
    watcher.join()
    assert load(near, "s") == contents
    proxy.set(Mode.PASS)
    said: list[Progress] = []
    move(near, far, "s", progress=said.append)
    assert said[-1].stored < len(contents) * CHUNK_BYTES, "what had arrived isn't sent again"
    assert load(far, "s") == contents


MEASURE = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, {top!r})
from kybernate.store import *
from kybernate.store.memory import Buffer
from kybernate.model.types import MIB

def peak():
    return next(int(l.split()[1]) * 1024 for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))

base = Path({base!r})
(base / "far").mkdir()
book = Catalog(base / "catalog.db")
keys = keys_of(DEFAULT_TENANT, {secret!r})
near = Tier(LocalMedium(base / "near"), book); near.open()
far = Tier(ObjectMedium(f"file://{{base}}/far"), book); far.open()
one, two = near.space(keys), far.space(keys)
import random
class Endless:
    left = {size}
    def read(self, n):
        n = min(n, self.left); self.left -= n
        return random.randbytes(n)
with open_writer(one, "s") as writer:
    stream = Endless()
    while content := stream.read(8 << 20):
        writer.add_bytes("big-%d" % stream.left, content)
    writer.commit()
before = peak()
move(one, two, "s")
between = peak()
copy(two, one, "s")
print(json.dumps([before, between, peak()]))
"""


@pytest.mark.parametrize("secret", [None, bytes(32)], ids=["plain", "encrypted"])
def test_moving_needs_no_second_copy_in_memory(tmp_path: Path, secret: bytes | None) -> None:
    """However large a snapshot is: here 768 MiB, with packs as large as in earnest."""
    size = 768 << 20
    script = MEASURE.format(top=str(Path(__file__).parents[2]), base=str(tmp_path), secret=secret, size=size)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, up, down = json.loads(done.stdout)
    print(f"peaks: {before >> 20} MiB after writing, {up >> 20} after moving away, {down >> 20} after copying back")
    assert before < 350 << 20
    assert down < 450 << 20
