"""A Llama-like decoder in plain PyTorch, as large as asked for, with weights made at random on the GPU: bf16, greedy, KV cache.

What it says means nothing; what it computes is what a real model of its size computes. The weights come from the seed alone, so two
processes with one seed are the same model. As servers do, it answers several at once: prompts go through in chunks, then each
pass makes the next token of up to `SLOTS` sequences, and with a GPU both are CUDA graphs. Kernels and shapes are the same whatever
is asked and whoever asks beside, so answers are the same bit by bit: a token's word carries a sum over the bits of the last layer,
so that a wrong weight shows even where it changes no token.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

VOCABULARY = 32_000
HEAD = 128
CONTEXT = 512
"""Tokens of prompt and answer together; a longer prompt loses its beginning."""
SLOTS = 8
"""Sequences at once."""
CHUNK = 32
"""Tokens of a prompt that go through together; a divisor of CONTEXT."""
EPSILON = 1e-5
ELEMENT_BYTES = 2
WORKSPACE_BYTES = 128 << 20
"""What activations and cuBLAS take beside weights and cache."""


@dataclass(frozen=True, slots=True)
class Shape:
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    layers: int

    @property
    def layer_bytes(self) -> int:
        attention = self.hidden * HEAD * (2 * self.heads + 2 * self.kv_heads)
        return ELEMENT_BYTES * (attention + 3 * self.hidden * self.inner)

    @property
    def cache_bytes(self) -> int:
        """Of a layer."""
        return ELEMENT_BYTES * 2 * SLOTS * CONTEXT * self.kv_heads * HEAD

    @property
    def total_bytes(self) -> int:
        embeddings = 2 * ELEMENT_BYTES * VOCABULARY * self.hidden
        return embeddings + self.layers * (self.layer_bytes + self.cache_bytes) + WORKSPACE_BYTES


def shape_for(size: int) -> Shape:
    """The deepest that needs at most `size` bytes of VRAM. Raises ValueError where none does."""
    widths = ((12 << 30, 5120, 13824), (2 << 30, 4096, 11008), (512 << 20, 1024, 2816), (0, 256, 704))
    hidden, inner = next((hidden, inner) for least, hidden, inner in widths if size >= least)
    heads = hidden // HEAD
    one = Shape(hidden=hidden, inner=inner, heads=heads, kv_heads=max(1, heads // 4), layers=1)
    more = (size - one.total_bytes) // (one.layer_bytes + one.cache_bytes)
    if more < 0:
        raise ValueError(f"the smallest model takes {one.total_bytes} bytes, more than {size}")
    return Shape(hidden=hidden, inner=inner, heads=heads, kv_heads=one.kv_heads, layers=1 + int(more))


@dataclass(slots=True)
class Answer:
    """A sequence that has a slot of the cache."""

    slot: int
    token: int
    """The last one, which is not in the cache yet."""
    place: int
    """Its own, counted from the prompt's beginning."""


class Transformer:
    """For one thread: whoever computes with cuBLAS from many has a workspace in VRAM for each of them."""

    def __init__(self, *, size: int, seed: int, device: str) -> None:
        self._torch: Any = importlib.import_module("torch")
        self.shape = shape_for(size)
        self._device = device
        self._random = self._torch.Generator(device=device).manual_seed(seed)
        shape = self.shape
        self._embedding = self._weight(VOCABULARY, shape.hidden)
        self._layers = [
            {
                "query": self._weight(shape.heads * HEAD, shape.hidden),
                "key": self._weight(shape.kv_heads * HEAD, shape.hidden),
                "value": self._weight(shape.kv_heads * HEAD, shape.hidden),
                "output": self._weight(shape.hidden, shape.heads * HEAD),
                "gate": self._weight(shape.inner, shape.hidden),
                "up": self._weight(shape.inner, shape.hidden),
                "down": self._weight(shape.hidden, shape.inner),
            }
            for _ in range(shape.layers)
        ]
        self._head = self._weight(VOCABULARY, shape.hidden)
        cache = (2, shape.layers, SLOTS, shape.kv_heads, CONTEXT, HEAD)
        self._cache = self._torch.zeros(cache, dtype=self._torch.bfloat16, device=device)
        self._cosines, self._sines = self._rotations()
        self._prompt = _Pass(self._forward, batch=1, length=CHUNK, device=device)
        self._next = _Pass(self._forward, batch=SLOTS, length=1, device=device)

    def _weight(self, *size: int) -> Any:
        made = self._torch.empty(size, dtype=self._torch.bfloat16, device=self._device)
        return made.normal_(0.0, size[-1] ** -0.5, generator=self._random)

    def _rotations(self) -> tuple[Any, Any]:
        torch = self._torch
        steps = torch.arange(0, HEAD, 2, dtype=torch.float32, device=self._device) / HEAD
        angles = torch.outer(torch.arange(CONTEXT, dtype=torch.float32, device=self._device), 10_000.0**-steps)
        both = torch.cat((angles, angles), dim=-1)
        return both.cos().bfloat16(), both.sin().bfloat16()

    def begin(self, slot: int, prompt: str, *, count: int) -> tuple[Answer, str]:
        """Read a prompt into a free slot and make the first of `count` words: each is a token and a sum over the bits of the last
        layer."""
        tokens = _tokens(prompt, most=max(1, CONTEXT - count))
        [(token, bits)] = self._read(slot, tokens)
        return Answer(slot=slot, token=token, place=len(tokens)), _word(token, bits)

    def go_on(self, answers: Sequence[Answer]) -> list[str]:
        """The next word of each, which stand in different slots and have room for one more (`full`)."""
        rows = {answer.slot: (answer.token, answer.place, answer.slot, 0) for answer in answers}
        made = self._next.run([rows.get(slot, (0, 0, slot, 0)) for slot in range(SLOTS)])
        words = []
        for answer in answers:
            answer.token, bits = made[answer.slot]
            answer.place += 1
            words.append(_word(answer.token, bits))
        return words

    def embed(self, slot: int, text: str) -> list[float]:
        """Of a text that is read into a free slot."""
        self._read(slot, _tokens(text, most=CONTEXT))
        values: list[float] = self._prompt.hidden[0, :16].float().tolist()
        return values

    def _read(self, slot: int, tokens: Sequence[int]) -> list[tuple[int, int]]:
        made: list[tuple[int, int]] = []
        for first in range(0, len(tokens), CHUNK):
            chunk = tokens[first : first + CHUNK]
            # What fills the chunk up is written behind the prompt, where the answer's tokens overwrite it before anything sees it.
            padded = (*chunk, *[0] * (CHUNK - len(chunk)))
            made = self._prompt.run([(*padded, *range(first, first + CHUNK), slot, len(chunk) - 1)])
        return made

    def _forward(self, tokens: Any, places: Any, slots: Any, last: Any) -> tuple[Any, Any]:
        """What the tokens (batch, length) at their places become, each row in its slot of the cache: (batch, hidden) after its
        `last` token, and (2, batch) of the next token and the sum over the bits it was chosen by."""
        torch, functional, shape = self._torch, self._torch.nn.functional, self.shape
        batch, length = tokens.shape
        groups = shape.heads // shape.kv_heads
        x = self._embedding[tokens]
        cosines, sines = self._cosines[places][:, None], self._sines[places][:, None]
        # A row a query: it sees what stands at its own place and before.
        visible = torch.arange(CONTEXT, device=self._device) <= places[:, None, None, :, None]
        visible = visible.expand(batch, 1, groups, length, CONTEXT).flatten(2, 3)
        kv_heads = torch.arange(shape.kv_heads, device=self._device)
        where = (slots[:, None, None], kv_heads[None, :, None], places[:, None, :])
        for number, layer in enumerate(self._layers):
            normed = functional.rms_norm(x, (x.shape[-1],), eps=EPSILON)
            query = _rotated(_split(normed @ layer["query"].t()), cosines, sines, torch)
            keys, values = self._cache[0, number], self._cache[1, number]
            keys[where] = _rotated(_split(normed @ layer["key"].t()), cosines, sines, torch)
            values[where] = _split(normed @ layer["value"].t())
            if batch != SLOTS:
                keys, values = keys.index_select(0, slots), values.index_select(0, slots)
            # Queries that share a key stand in one matrix.
            query = query.unflatten(1, (shape.kv_heads, groups)).flatten(2, 3)
            weights = (query @ keys.transpose(-1, -2)).float() * HEAD**-0.5
            weights = weights.masked_fill(~visible, float("-inf")).softmax(dim=-1).bfloat16()
            seen = (weights @ values).unflatten(2, (groups, length)).flatten(1, 2)
            x = x + seen.transpose(1, 2).flatten(2) @ layer["output"].t()
            normed = functional.rms_norm(x, (x.shape[-1],), eps=EPSILON)
            inner = functional.silu(normed @ layer["gate"].t()) * (normed @ layer["up"].t())
            x = x + inner @ layer["down"].t()
        hidden = x[torch.arange(batch, device=self._device), last]
        hidden = functional.rms_norm(hidden, (hidden.shape[-1],), eps=EPSILON)
        token = (hidden @ self._head.t()).argmax(dim=-1)
        return hidden, torch.stack((token, hidden.view(torch.int16).sum(dim=-1, dtype=torch.int64)))


class _Pass:
    """A forward pass of one shape. With a GPU it is a CUDA graph: a launch instead of a thousand."""

    def __init__(self, forward: Callable[..., tuple[Any, Any]], *, batch: int, length: int, device: str) -> None:
        torch: Any = importlib.import_module("torch")
        self._torch = torch
        self._inputs = torch.zeros((batch, 2 * length + 2), dtype=torch.int64, device=device)
        tokens, places = self._inputs[:, :length], self._inputs[:, length : 2 * length]
        self._compute = torch.inference_mode()(
            lambda: forward(tokens, places, self._inputs[:, -2], self._inputs[:, -1])
        )
        self._graph: Any = None
        if device == "cuda":
            # Whatever is loaded or chosen at a first time must be so before the recording begins.
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._compute()
            torch.cuda.current_stream().wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self.hidden, self._made = self._compute()

    def run(self, rows: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
        """For each row of tokens, places, slot and place of the last token in the row: the next token, and a sum over bits."""
        self._inputs.copy_(self._torch.tensor(rows))
        if self._graph is None:
            self.hidden, self._made = self._compute()
        else:
            self._graph.replay()
        tokens, bits = self._made.tolist()
        return list(zip(tokens, bits, strict=True))


def full(answer: Answer) -> bool:
    """There is no room for another word."""
    return answer.place >= CONTEXT


def _tokens(text: str, *, most: int) -> list[int]:
    return [zlib.crc32(word.encode()) % VOCABULARY for word in text.split()][-most:] or [0]


def _word(token: int, bits: int) -> str:
    return f"t{token}.{bits & 0xFFFFFFFF:08x} "


def _split(x: Any) -> Any:
    """(batch, tokens, heads * HEAD) as (batch, heads, tokens, HEAD)."""
    return x.unflatten(-1, (-1, HEAD)).transpose(1, 2)


def _rotated(x: Any, cosines: Any, sines: Any, torch: Any) -> Any:
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines
