"""How far a switch has come: never more than there is, whoever counts."""

from __future__ import annotations

import threading

import pytest

from kybernate.engine.progress import Progress

pytestmark = pytest.mark.unit


def test_before_the_first_byte_nobody_knows_how_long_it_takes() -> None:
    progress = Progress(100)
    assert (progress.done_bytes, progress.bytes_per_s, progress.seconds_left) == (0, 0.0, None)


def test_bytes_are_summed_and_never_more_than_there_are() -> None:
    progress = Progress(100)
    progress.add(60)
    assert progress.done_bytes == 60
    assert progress.bytes_per_s > 0
    left = progress.seconds_left
    assert left is not None
    assert left > 0
    progress.add(60)
    assert (progress.done_bytes, progress.seconds_left) == (100, 0.0)


def test_of_nothing_nothing_is_left() -> None:
    progress = Progress(0)
    progress.add(5)
    assert (progress.done_bytes, progress.seconds_left) == (0, None)


def test_threads_lose_no_byte() -> None:
    progress = Progress(1 << 40)

    def count() -> None:
        for _ in range(2000):
            progress.add(3)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress.done_bytes == 4 * 2000 * 3
