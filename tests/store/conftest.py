"""A tier in a directory of the test's own, and file systems on loop devices."""

from __future__ import annotations

import secrets
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
