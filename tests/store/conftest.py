"""A tier in a directory of the test's own, and file systems on loop devices."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.store.rig import OpenTier
from tests.store.server import Proxy, Server, Unbuildable, options

from kybernate.model.types import MIB
from kybernate.store import Catalog, LocalMedium, ObjectMedium, Tier


@pytest.fixture
def open_tier(tmp_path: Path) -> Iterator[OpenTier]:
    """Opens tiers in `tmp_path/tier`, with the catalog in `tmp_path/catalog.db`; closes what is open at the end."""
    opened: list[tuple[Tier, Catalog]] = []

    def make(
        root: Path | None = None,
        *,
        catalog: Path | None = None,
        pack_bytes: int = 8 * MIB,
        accept_loss: bool = False,
        **options: Any,
    ) -> Tier:
        book = Catalog(catalog or tmp_path / "catalog.db")
        tier = Tier(LocalMedium(root or tmp_path / "tier", pack_bytes=pack_bytes, threads=4), book, **options)
        try:
            tier.open(accept_loss=accept_loss)
        except BaseException:
            book.close()
            raise
        opened.append((tier, book))
        return tier

    yield make
    for tier, book in opened:
        tier.close()
        book.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real S3 server, one for each test process; each test makes its own bucket."""
    root = tmp_path_factory.mktemp("s3")
    try:
        running = Server(root)
    except Unbuildable as e:
        pytest.skip(str(e))
    yield running
    running.close()


@pytest.fixture
def bucket(server: Server) -> str:
    name = f"b-{secrets.token_hex(6)}"
    server.make_bucket(name)
    return name


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """In front of the server."""
    between = Proxy(server.port)
    yield between
    between.close()


OpenAgent = Callable[..., Tier]


@pytest.fixture
def open_agent(server: Server, bucket: str, tmp_path: Path) -> Iterator[OpenAgent]:
    """Each call is another agent on the test's bucket, with a catalog of its own."""
    opened: list[Tier] = []

    def make(
        port: int | None = None,
        *,
        url: str | None = None,
        catalog: Path | None = None,
        patience_s: float = 20.0,
        pack_bytes: int = 8 * MIB,
        **settings: Any,
    ) -> Tier:
        book = Catalog(catalog or tmp_path / f"agent-{len(opened)}.db")
        try:
            medium = ObjectMedium(
                url or f"s3://{bucket}/snapshots",
                options=None if url and url.startswith("file") else options(port or server.port),
                patience_s=patience_s,
                pack_bytes=pack_bytes,
                threads=4,
            )
            tier = Tier(medium, book, **settings)
            tier.open()
        except BaseException:
            book.close()
            raise
        opened.append(tier)
        return tier

    yield make
    for tier in opened:
        tier.close()
        tier.catalog.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """`small_disk(size_bytes, kind)` mounts a real file system on a loop device; `small_disk(like=place)` mounts what is
    on the disk of another one at this moment, as after a power cut. Gone at the end."""
    mounted: dict[Path, Path] = {}

    def make(size_bytes: int = 0, kind: str = "ext4", *, like: Path | None = None) -> Path:
        image = tmp_path / f"disk-{len(mounted)}.image"
        place = tmp_path / f"disk-{len(mounted)}"
        if like is None:
            program = shutil.which(f"mkfs.{kind}", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
            if program is None:
                pytest.skip(f"left out: needs mkfs.{kind}")
            with image.open("wb") as file:
                file.truncate(size_bytes)
            subprocess.run([program, "-q", str(image)], check=True, capture_output=True)
        else:
            # A copy: namespaces that others made meanwhile may hold the old mount, and with it the old state, for long.
            subprocess.run(["cp", "--sparse=always", str(mounted[like]), str(image)], check=True)
            _unmount(like)
        place.mkdir()
        mount = ["mount", "-o", "loop", str(image), str(place)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"left out: no loop device here ({done.stderr.strip()})")
        mounted[place] = image
        return place

    yield make
    for place in mounted:
        _unmount(place)


def _unmount(place: Path) -> None:
    # Not is_mount(): a file system without power answers no stat.
    if f" {place} " in Path("/proc/self/mounts").read_text():
        subprocess.run(["umount", "-l", str(place)], check=True)
