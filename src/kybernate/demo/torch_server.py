"""A real model server, of PyTorch alone: `python -m kybernate.demo.torch_server --port P --bytes N --name M`.

A transformer of that size (`transformer.py`) behind the OpenAI routes of `openai.py`, several requests at once as servers
do. It runs under any interpreter that has PyTorch and imports nothing else but the standard library.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from kybernate.demo import openai
from kybernate.demo.transformer import CONTEXT, SLOTS, Answer, Shape, Transformer, full


@dataclass(slots=True, eq=False)
class _Order:
    """A text, and where what becomes of it goes; None is the end."""

    text: str
    count: int
    """Words wanted; none: its embedding."""
    made: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    given_up: bool = False

    def __iter__(self) -> Iterator[Any]:
        try:
            while (piece := self.made.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.given_up = True


class Computing:
    """The model in a thread of its own: up to `SLOTS` requests at once, new ones join between two tokens, others stand in line."""

    def __init__(self, make: Callable[[], Transformer], *, name: str) -> None:
        self.name = name
        self._make = make
        self._ready: Future[Shape] = Future()
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._free = list(range(SLOTS))
        self._running: dict[_Order, Answer] = {}
        threading.Thread(target=self._compute, name="compute", daemon=True).start()

    def wait(self) -> Shape:
        """Until it is loaded. Raises what stopped it."""
        return self._ready.result()

    def generate(self, prompt: str, count: int) -> Iterator[str]:
        order = _Order(prompt, min(count, CONTEXT - 1))
        self._orders.put(order)
        yield from order

    def embed(self, text: str) -> list[float]:
        order = _Order(text, 0)
        self._orders.put(order)
        values: list[float] = next(iter(order))
        return values

    def _compute(self) -> None:
        try:
            model = self._make()
        except Exception as e:
            self._ready.set_exception(e)
            return
        self._ready.set_result(model.shape)
        while True:
            while self._free and (order := self._order(wait=not self._running)) is not None:
                self._begin(model, order)
            if self._running:
                self._go_on(model)

    def _order(self, *, wait: bool) -> _Order | None:
        try:
            return self._orders.get(block=wait)
        except queue.Empty:
            return None

    def _begin(self, model: Transformer, order: _Order) -> None:
        if order.given_up:
            return
        slot = self._free.pop()
        try:
            if not order.count:
                order.made.put(model.embed(slot, order.text))
                self._end(order, slot)
                return
            answer, word = model.begin(slot, order.text, count=order.count)
        except Exception as e:
            self._end(order, slot, e)
            return
        self._running[order] = answer
        self._tell(order, word)

    def _go_on(self, model: Transformer) -> None:
        try:
            words = model.go_on(list(self._running.values()))
        except Exception as e:
            for order, answer in list(self._running.items()):
                self._end(order, answer.slot, e)
            return
        for order, word in zip(list(self._running), words, strict=True):
            self._tell(order, word)

    def _tell(self, order: _Order, word: str) -> None:
        order.made.put(word)
        order.count -= 1
        answer = self._running[order]
        if order.given_up or not order.count or full(answer):
            self._end(order, answer.slot)

    def _end(self, order: _Order, slot: int, error: Exception | None = None) -> None:
        self._running.pop(order, None)
        self._free.append(slot)
        if error is not None:
            order.made.put(error)
        order.made.put(None)


def main(arguments: list[str] | None = None) -> int:
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="demo_torch", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, required=True, help="0: a free one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--bytes", type=int, required=True, help="VRAM it takes, weights and cache")
    parser.add_argument("--name", default="demo")
    parser.add_argument("--seed", type=int, default=1, help="other weights, other answers")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(arguments)
    # The same results again need the same workspace again, and this says which.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    computing = Computing(
        lambda: Transformer(size=options.bytes, seed=options.seed, device=options.device), name=options.name
    )
    shape = computing.wait()
    ready = (
        f"bytes={shape.total_bytes} name={options.name} layers={shape.layers} seconds={time.monotonic() - began:.2f}"
    )
    openai.serve(computing, host=options.host, port=options.port, ready=ready)
    return 0


if __name__ == "__main__":
    sys.exit(main())
