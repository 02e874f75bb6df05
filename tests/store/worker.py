"""A process that stores, deletes and collects until it is killed, and says what it does: `python worker.py ROOT CATALOG SEED`.

Each line is one fact: `begin NAME`, `commit NAME`, `deleting NAME`, `deleted NAME`. What a snapshot holds follows from its name.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from kybernate.model.types import CHUNK_BYTES, MIB
from kybernate.store import Catalog, LocalMedium, Space, Tier, collect, keys_of, open_reader, open_writer
from kybernate.store.memory import Buffer
from kybernate.store.tenants import TenantName

SHARED = 6
"""So many contents are used by many snapshots."""


def contents_of(name: str) -> list[bytes]:
    """What a snapshot of this name holds: some chunks of its own, some of others', and small pieces."""
    chosen = random.Random(name)
    chunks = [random.Random(chosen.randrange(SHARED)).randbytes(CHUNK_BYTES) for _ in range(chosen.randrange(1, 4))]
    chunks += [random.Random(f"{name}/{k}").randbytes(CHUNK_BYTES) for k in range(chosen.randrange(4))]
    return chunks


def file_of(name: str) -> bytes:
    return random.Random(f"file of {name}").randbytes(random.Random(name).randrange(200_000))


def store(space: Space, name: str) -> None:
    buffers = []
    for content in contents_of(name):
        buffer = Buffer()
        buffer.view[:CHUNK_BYTES] = content
        buffers.append(buffer)
    with open_writer(space, name) as writer:
        writer.add_extent([buffer.view[:CHUNK_BYTES] for buffer in buffers])
        writer.add_bytes("file", file_of(name))
        writer.commit(state={"name": name})


def matches(space: Space, name: str) -> bool:
    """Whether a snapshot holds exactly what its name says."""
    wanted = contents_of(name)
    with open_reader(space, name) as reader:
        extent = reader.manifest.extents[0]
        if extent.count != len(wanted):
            return False
        out = [bytearray(CHUNK_BYTES) for _ in wanted]
        reader.read_part(extent, [memoryview(chunk) for chunk in out])
        return [bytes(chunk) for chunk in out] == wanted and reader.read_bytes("file") == file_of(name)


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def main(root: str, catalog: str, seed: str) -> None:
    chance = random.Random(seed)
    book = Catalog(Path(catalog))
    tier = Tier(LocalMedium(Path(root), pack_bytes=8 * MIB, threads=4), book)
    tier.open()
    space = tier.space(keys_of(TenantName("default")))
    say("ready")
    number = 0
    while True:
        what = chance.random()
        names = [row.name for row in space.snapshots()]
        if what < 0.65 or not names:
            name = f"s-{seed}-{number}"
            number += 1
            say(f"begin {name}")
            store(space, name)
            say(f"commit {name}")
        elif what < 0.85 and len(names) > 3:
            name = chance.choice(names)
            say(f"deleting {name}")
            space.delete(name)
            say(f"deleted {name}")
        else:
            collect(space, compact_below=0.7)
            say("collected")


if __name__ == "__main__":
    main(*sys.argv[1:])
