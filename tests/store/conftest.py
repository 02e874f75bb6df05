"""A tier in a directory of the test's own, and file systems on loop devices."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.store.rig import OpenTier

from kybernate.model.types import MIB
from kybernate.store import Catalog, LocalMedium, Tier


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a real file system from a file, on a loop device; gone at the end."""
    if os.geteuid() != 0:
        pytest.skip("left out: needs root")
    mounted: list[Path] = []

    def make(size_bytes: int, kind: str = "ext4", name: str = "disk") -> Path:
        program = shutil.which(f"mkfs.{kind}", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is None:
            pytest.skip(f"left out: needs mkfs.{kind}")
        image = tmp_path / f"{name}.image"
        with image.open("wb") as file:
            file.truncate(size_bytes)
        subprocess.run([program, "-q", str(image)], check=True, capture_output=True)
        place = tmp_path / name
        place.mkdir()
        done = subprocess.run(
            ["mount", "-o", "loop", str(image), str(place)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"left out: no loop device here ({done.stderr.strip()})")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)
