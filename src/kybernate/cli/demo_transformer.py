"""A Llama-like decoder in plain PyTorch, as large as asked for, with weights made at random on the GPU: bf16, greedy, KV cache.

What it says means nothing; what it computes is what a real model of its size computes. The weights come from the seed alone, so two
processes with one seed are the same model. Kernels and shapes are the same for each request, so answers are the same bit by bit:
a token's word carries a sum over the bits of the last layer, so that a wrong weight shows even where it changes no token.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

VOCABULARY = 32_000
HEAD = 128
CONTEXT = 512
"""Tokens of prompt and answer together; a longer prompt loses its beginning."""
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
        return ELEMENT_BYTES * 2 * CONTEXT * self.kv_heads * HEAD

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
        cache = (2, shape.layers, 1, shape.kv_heads, CONTEXT, HEAD)
        self._cache = self._torch.zeros(cache, dtype=self._torch.bfloat16, device=device)
        self._cosines, self._sines = self._rotations()

    def _weight(self, *size: int) -> Any:
        made = self._torch.empty(size, dtype=self._torch.bfloat16, device=self._device)
        return made.normal_(0.0, size[-1] ** -0.5, generator=self._random)

    def _rotations(self) -> tuple[Any, Any]:
        torch = self._torch
        steps = torch.arange(0, HEAD, 2, dtype=torch.float32, device=self._device) / HEAD
        angles = torch.outer(torch.arange(CONTEXT, dtype=torch.float32, device=self._device), 10_000.0**-steps)
        both = torch.cat((angles, angles), dim=-1)
        return both.cos().bfloat16(), both.sin().bfloat16()

    def generate(self, prompt: str, count: int) -> Iterator[str]:
        """`count` words: each a token, and a sum over the bits of the last layer."""
        room = max(1, CONTEXT - count)
        tokens = [zlib.crc32(word.encode()) % VOCABULARY for word in prompt.split()][-room:] or [0]
        at = 0
        for _ in range(min(count, CONTEXT - 1)):
            token, bits = self._step(tokens, at)
            at += len(tokens)
            tokens = [token]
            yield f"t{token}.{bits:08x} "

    def embed(self, text: str) -> list[float]:
        tokens = [zlib.crc32(word.encode()) % VOCABULARY for word in text.split()][-CONTEXT:] or [0]
        with self._torch.inference_mode():
            values: list[float] = self._hidden(tokens, 0)[0, -1, :16].float().tolist()
        return values

    def _step(self, tokens: list[int], at: int) -> tuple[int, int]:
        """The next token, and the sum over the bits of what it was chosen by."""
        torch = self._torch
        with torch.inference_mode():
            hidden = self._hidden(tokens, at)[0, -1]
            token = (hidden @ self._head.t()).argmax(dim=-1)
            number, bits = torch.stack((token, hidden.view(torch.int16).sum(dtype=torch.int64))).tolist()
        return number, bits & 0xFFFFFFFF

    def _hidden(self, tokens: list[int], at: int) -> Any:
        torch, functional = self._torch, self._torch.nn.functional
        end = at + len(tokens)
        x = self._embedding[torch.tensor([tokens], device=self._device)]
        cosines, sines = self._cosines[at:end], self._sines[at:end]
        # A row a query: it sees what stands at its own place and before.
        visible = torch.arange(end, device=self._device) <= torch.arange(at, end, device=self._device)[:, None]
        for number, layer in enumerate(self._layers):
            normed = functional.rms_norm(x, (x.shape[-1],), eps=EPSILON)
            query = _rotated(self._split(normed @ layer["query"].t()), cosines, sines, torch)
            key = _rotated(self._split(normed @ layer["key"].t()), cosines, sines, torch)
            self._cache[0, number, :, :, at:end] = key
            self._cache[1, number, :, :, at:end] = self._split(normed @ layer["value"].t())
            groups = self.shape.heads // self.shape.kv_heads
            keys = self._cache[0, number, :, :, :end].repeat_interleave(groups, dim=1)
            values = self._cache[1, number, :, :, :end].repeat_interleave(groups, dim=1)
            weights = (query @ keys.transpose(-1, -2)).float() * HEAD**-0.5
            weights = weights.masked_fill(~visible, float("-inf")).softmax(dim=-1).bfloat16()
            x = x + (weights @ values).transpose(1, 2).flatten(2) @ layer["output"].t()
            normed = functional.rms_norm(x, (x.shape[-1],), eps=EPSILON)
            inner = functional.silu(normed @ layer["gate"].t()) * (normed @ layer["up"].t())
            x = x + inner @ layer["down"].t()
        return functional.rms_norm(x, (x.shape[-1],), eps=EPSILON)

    def _split(self, x: Any) -> Any:
        """(batch, tokens, heads * HEAD) as (batch, heads, tokens, HEAD)."""
        return x.unflatten(-1, (-1, HEAD)).transpose(1, 2)


def _rotated(x: Any, cosines: Any, sines: Any, torch: Any) -> Any:
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines
