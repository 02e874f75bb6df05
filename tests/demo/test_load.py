"""Requests by a trace over real connections: what is told of each, whatever the other end does."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kybernate.demo import openai
from kybernate.demo.load import Ask, Told, ask_once, drive, free_address, in_turn, prompts, quantile, session, zipf


class Model:
    name = "one"

    def generate(self, prompt: str, count: int) -> Iterator[str]:
        for number in range(count):
            if prompt == "break" and number == 2:
                raise ZeroDivisionError
            yield f"{prompt}{number} "

    def embed(self, text: str) -> list[float]:
        return [float(len(text))]


@pytest.fixture
def url() -> Iterator[str]:
    with openai._Server(("127.0.0.1", 0), Model()) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


ASK = Ask(at=0.0, model="one", prompt="p", tokens=4)


def told(url: str, ask: Ask = ASK, timeout_s: float = 60.0) -> Told:
    async def once() -> Told:
        async with session() as http:
            return await ask_once(http, url, ask, timeout_s=timeout_s)

    return asyncio.run(once())


def test_an_answer_is_told_in_whole_with_the_time_of_its_first_token(url: str) -> None:
    found = told(url)
    assert (found.status, found.text, found.complete, found.error) == (200, "p0 p1 p2 p3 ", True, "")
    assert found.first_s is not None
    assert 0 < found.first_s <= found.total_s
    assert found.held_s == 0.0


def test_a_refusal_is_told_with_its_words(url: str) -> None:
    found = told(url, replace(ASK, model="other"))
    assert (found.status, found.text, found.complete, found.first_s) == (404, "", False, None)
    assert "no such model" in found.error


def test_an_answer_that_breaks_off_is_not_complete(url: str) -> None:
    found = told(url, replace(ASK, prompt="break"))
    assert (found.status, found.text, found.complete) == (200, "break0 break1 ", False)
    assert found.error


def test_nobody_there_is_no_status() -> None:
    found = told(f"http://{free_address()}")
    assert (found.status, found.complete) == (0, False)
    assert found.error


def test_a_trace_is_sent_in_its_own_time_and_told_in_the_order_of_sending(url: str) -> None:
    asks = [replace(ASK, at=at) for at in (0.2, 0.0, 0.1)]
    heard: list[Told] = []
    found = asyncio.run(drive(url, asks, told=heard.append))
    assert [each.ask.at for each in found] == [0.0, 0.1, 0.2]
    assert all(each.complete and each.sent_at >= each.ask.at for each in found)
    assert sorted(heard, key=lambda each: each.sent_at) == found


def test_what_was_not_yet_sent_when_all_is_over_is_left_out(url: str) -> None:
    asks = [ASK, replace(ASK, at=100.0)]
    assert [each.ask for each in asyncio.run(drive(url, asks, over_s=5.0))] == [ASK]


def test_one_after_the_other_is_in_order(url: str) -> None:
    asks = [replace(ASK, prompt=text) for text in "abc"]
    assert [each.text[0] for each in asyncio.run(in_turn(url, asks))] == ["a", "b", "c"]


@pytest.mark.unit
def test_how_long_it_was_held_is_the_activators_word() -> None:
    one = Told(ASK, 0.0, 200, "", None, 1.0, complete=True, headers={"wait-ms": "1500"})
    assert one.held_s == 1.5


@pytest.mark.unit
def test_prompts_are_the_same_for_each_run_and_others_for_each_model() -> None:
    assert prompts("a", 3) == prompts("a", 3)
    assert set(prompts("a", 3)).isdisjoint(prompts("b", 3))
    assert len(set(prompts("a", 50))) == 50


@pytest.mark.unit
def test_pauses_in_a_trace_come_on_top_of_its_time() -> None:
    plain = zipf(["a"], count=200, seconds=100, seed=1, tokens=1)
    rested = zipf(["a"], count=200, seconds=100, seed=1, tokens=1, every=20.0, gap=50.0)
    assert [ask.at for ask in rested] == [ask.at + ask.at // 20.0 * 50.0 for ask in plain]
    assert not any(20.0 <= ask.at < 70.0 for ask in rested), "nobody asks in the pause"


@pytest.mark.unit
def test_a_trace_is_that_of_its_seed_and_follows_zipf() -> None:
    models = ["a", "b", "c", "d"]
    trace = zipf(models, count=4000, seconds=100, seed=1, tokens=4)
    assert trace == zipf(models, count=4000, seconds=100, seed=1, tokens=4)
    assert trace != zipf(models, count=4000, seconds=100, seed=2, tokens=4)
    assert [ask.at for ask in trace] == sorted(ask.at for ask in trace)
    assert math.isclose(trace[-1].at, 100, rel_tol=0.1)
    counted = Counter(ask.model for ask in trace)
    for rank, model in enumerate(models, 1):
        assert math.isclose(counted[model] * rank, counted["a"], rel_tol=0.15)
    assert len({ask.prompt for ask in trace}) == 8 * len(models)


@pytest.mark.unit
def test_quantiles() -> None:
    values = [float(k) for k in range(1, 101)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile([3.0], 0.99)) == (51.0, 100.0, 3.0)
    with pytest.raises(ValueError, match="nothing"):
        quantile([], 0.5)
