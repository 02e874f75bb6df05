"""The demo's transformer: its size, and that it says the same whoever asks beside. Most of it needs PyTorch."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kybernate.demo.torch_server import Computing
from kybernate.demo.transformer import CHUNK, SLOTS, Transformer, shape_for
from kybernate.model.types import GIB, MIB

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("size", [256 * MIB, GIB, 4 * GIB, 24 * GIB, 70 * GIB])
def test_a_transformer_takes_what_it_may_and_no_more(size: int) -> None:
    shape = shape_for(size)
    assert shape.total_bytes <= size
    assert size - shape.total_bytes < shape.layer_bytes + shape.cache_bytes
    assert shape.layers < 200


def test_a_transformer_too_small() -> None:
    with pytest.raises(ValueError, match="smallest"):
        shape_for(16 * MIB)


def test_a_transformer_answers_the_same_whoever_asks_beside() -> None:
    pytest.importorskip("torch", reason="left out: needs PyTorch")
    one, two, other = (Transformer(size=200 * MIB, seed=seed, device="cpu") for seed in (1, 1, 2))
    long = " ".join(f"word-{k}" for k in range(2 * CHUNK + 5))
    alone = {prompt: words(one, 0, prompt, 6) for prompt in ("some words to begin with", long)}
    assert len(set(alone[long])) == 6
    assert alone[long] == words(two, SLOTS - 1, long, 6)
    assert alone[long] != words(other, 0, long, 6)
    first, word_1 = two.begin(3, long, count=6)
    together = {long: [word_1, *two.go_on([first])]}
    second, word_2 = two.begin(5, "some words to begin with", count=6)
    together["some words to begin with"] = [word_2]
    for _ in range(4):
        for prompt, word in zip(together, two.go_on([first, second]), strict=True):
            together[prompt].append(word)
    assert together[long] == alone[long]
    assert together["some words to begin with"] == alone["some words to begin with"][:5]


def test_what_a_transformer_says_depends_on_all_that_was_said() -> None:
    pytest.importorskip("torch", reason="left out: needs PyTorch")
    model = Transformer(size=200 * MIB, seed=1, device="cpu")
    prompt = " ".join(f"word-{k}" for k in range(CHUNK + 1))
    said = [word.partition(".")[0].strip() for word in words(model, 0, prompt, 3)]
    assert words(model, 1, f"other {prompt.partition(' ')[2]}", 3)[0] != words(model, 1, prompt, 3)[0]
    assert len(set(said)) == 3


def test_a_transformer_server_answers_many_at_once_and_forgets_who_hung_up() -> None:
    pytest.importorskip("torch", reason="left out: needs PyTorch")
    computing = Computing(lambda: Transformer(size=200 * MIB, seed=1, device="cpu"), name="one")
    assert computing.wait().total_bytes <= 200 * MIB
    prompts = [f"prompt {k}" for k in range(2 * SLOTS)]
    alone = {prompt: list(computing.generate(prompt, 4)) for prompt in prompts}
    embedded = computing.embed("prompt 1")
    hung_up = [computing.generate(prompt, 400) for prompt in prompts[:SLOTS]]
    for stream in hung_up:
        assert next(stream)
        assert isinstance(stream, Generator)
        stream.close()
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = dict(
            zip(prompts, pool.map(lambda prompt: list(computing.generate(prompt, 4)), prompts), strict=True)
        )
    assert together == alone
    assert computing.embed("prompt 1") == embedded


def words(model: Transformer, slot: int, prompt: str, count: int) -> list[str]:
    answer, word = model.begin(slot, prompt, count=count)
    return [word, *(model.go_on([answer])[0] for _ in range(count - 1))]
