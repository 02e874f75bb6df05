"""What is seen of a request that takes long: when its client hears that it is waited for, and from when its silence counts."""

from __future__ import annotations

import pytest

from kybernate.model.messages import Limits
from kybernate.proxy.watch import Watch

pytestmark = pytest.mark.unit


def test_a_client_that_wants_no_events_hears_nothing() -> None:
    assert not Watch().beats(1e9, every_s=1)


def test_beats_come_from_their_time_on_and_then_again_and_again() -> None:
    watch = Watch(beat_at=100)
    assert not watch.beats(99.9, every_s=10)
    assert watch.beats(100, every_s=10)
    assert not watch.beats(109.9, every_s=10)
    assert watch.beats(115, every_s=10)
    assert not watch.beats(124.9, every_s=10), "counted from the last one, so none comes twice at once"
    assert watch.beats(125, every_s=10)


def test_beats_that_are_switched_off_wait_until_they_are_on_again() -> None:
    watch = Watch(beat_at=100)
    assert not watch.beats(200, every_s=None)
    assert watch.beats(200, every_s=5)


def look(
    watch: Watch, now: float, *, moved: int = 0, left: int = 0, begun: bool = True, **limits: float | None
) -> bool:
    return watch.observe(now, moved=moved, left=left, begun=begun, limits=Limits(**limits))  # type: ignore[arg-type]


def test_a_long_prompt_is_no_silence_unless_it_has_a_limit() -> None:
    watch = Watch()
    for now in (0, 1000, 100_000):
        assert not look(watch, now, begun=False)
    assert not watch.still
    limited = Watch()
    look(limited, 0, begun=False, first_byte_s=60)
    assert not limited.still
    assert look(limited, 61, begun=False, first_byte_s=60)
    assert limited.still


def test_an_answer_on_which_nothing_moves_is_still_after_its_time_and_alive_when_it_moves() -> None:
    watch = Watch()
    look(watch, 0, moved=10, stream_idle_s=120)
    assert not look(watch, 119, moved=10, stream_idle_s=120)
    assert look(watch, 121, moved=10, stream_idle_s=120), "it changes"
    assert watch.still
    assert not look(watch, 122, moved=10, stream_idle_s=120), "and is said once"
    assert look(watch, 123, moved=11, stream_idle_s=120)
    assert not watch.still


def test_without_a_limit_an_answer_may_stand_for_ever() -> None:
    watch = Watch()
    for now in (0, 1e6, 1e9):
        assert not look(watch, now, moved=1, stream_idle_s=None)
    assert not watch.still


def test_one_that_was_never_looked_at_is_not_still() -> None:
    watch = Watch()
    watch.received(b"x")
    watch.sent(b"x")
    assert not watch.still
