"""A real model server, of PyTorch alone: `python -m kybernate.cli.demo_torch --port P --bytes N --name M`.

A transformer of that size (`demo_transformer`) behind the OpenAI routes of `demo_openai`, one request after the other as a small
server does. It runs under any interpreter that has PyTorch and imports nothing else but the standard library.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from kybernate.cli import demo_openai
from kybernate.cli.demo_transformer import Transformer

T = TypeVar("T")


class _Order(Generic[T]):
    """What the computing thread shall do, and where its pieces go; None is the end."""

    def __init__(self, work: Callable[[], Iterator[T]]) -> None:
        self.work = work
        self.made: queue.SimpleQueue[T | Exception | None] = queue.SimpleQueue()
        self.given_up = threading.Event()

    def __iter__(self) -> Iterator[T]:
        try:
            while (piece := self.made.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.given_up.set()


class Computing:
    """The model in a thread of its own; requests stand in line."""

    def __init__(self, model: Transformer, *, name: str) -> None:
        self.name = name
        self._model = model
        self._orders: queue.SimpleQueue[_Order[str] | _Order[list[float]]] = queue.SimpleQueue()
        threading.Thread(target=self._compute, name="compute", daemon=True).start()

    def generate(self, prompt: str, count: int) -> Iterator[str]:
        order: _Order[str] = _Order(lambda: self._model.generate(prompt, count))
        self._orders.put(order)
        yield from order

    def embed(self, text: str) -> list[float]:
        order: _Order[list[float]] = _Order(lambda: iter([self._model.embed(text)]))
        self._orders.put(order)
        return next(iter(order))

    def _compute(self) -> None:
        while True:
            order = self._orders.get()
            try:
                for piece in order.work():
                    if order.given_up.is_set():
                        break
                    order.made.put(piece)  # type: ignore[arg-type]
            except Exception as e:
                order.made.put(e)
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
    model = Transformer(size=options.bytes, seed=options.seed, device=options.device)
    computing = Computing(model, name=options.name)
    for count in (1, 2):  # the kernels of prompt and token are loaded now, not with the first request
        list(computing.generate("begin at the beginning", count))
    shape = model.shape
    ready = (
        f"bytes={shape.total_bytes} name={options.name} layers={shape.layers} seconds={time.monotonic() - began:.2f}"
    )
    demo_openai.serve(computing, host=options.host, port=options.port, ready=ready)
    return 0


if __name__ == "__main__":
    sys.exit(main())
