"""Requests by a trace, sent when their time comes whether others are answered or not; and what became of each of them.

The trace is made ahead from a seed: models by Zipf's law, arrivals at random, prompts from a small set, so that every answer can be
compared with one that was taken before. All answers are streamed: the time to the first token is what people wait for.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

HEADERS = "x-kybernate-"
"""Prefix of the response headers that say what a request went through."""
PROMPT_WORDS = 24


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `at`: seconds after the beginning."""

    at: float
    model: str
    prompt: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Told:
    """What became of it. Seconds since it was sent."""

    ask: Ask
    sent_at: float
    """Seconds after the beginning."""
    status: int
    """0: no answer at all."""
    text: str
    first_s: float | None
    """Until the first token."""
    total_s: float
    complete: bool
    """The answer ended as it should."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Those of ours, without their prefix."""
    error: str = ""

    @property
    def held_s(self) -> float:
        """How long it was held for its model, by the activator's word."""
        return float(self.headers.get("wait-ms", 0)) / 1000


def prompts(model: str, count: int) -> list[str]:
    """The same for each run."""
    source = random.Random(f"prompts of {model}")
    words = [
        f"{first}{second}" for first in ("ba", "lo", "mi", "re", "su", "ta") for second in ("ne", "ko", "ri", "vu")
    ]
    return [" ".join([f"{model}-{k}", *source.choices(words, k=PROMPT_WORDS)]) for k in range(count)]


def zipf(
    models: Sequence[str],
    *,
    count: int,
    seconds: float,
    seed: int,
    tokens: int,
    prompts_each: int = 8,
    every: float = math.inf,
    gap: float = 0.0,
) -> list[Ask]:
    """`count` requests over about `seconds`; the k-th model gets 1/k as many as the first.

    Args:
        every: after so many seconds of it nobody asks for `gap` seconds, which come on top.
    """
    source = random.Random(seed)
    weights = [1 / rank for rank in range(1, len(models) + 1)]
    known = {model: prompts(model, prompts_each) for model in models}
    asks, at = [], 0.0
    for _ in range(count):
        at += source.expovariate(count / seconds)
        model = source.choices(models, weights)[0]
        rested = at // every * gap if gap else 0.0
        asks.append(Ask(at=at + rested, model=model, prompt=source.choice(known[model]), tokens=tokens))
    return asks


def free_address() -> str:
    """HOST:PORT that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def session() -> aiohttp.ClientSession:
    """For any number of requests at once."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None, sock_connect=30)
    )


async def ask_once(
    http: aiohttp.ClientSession, url: str, ask: Ask, *, timeout_s: float, began: float | None = None
) -> Told:
    """Send it now. Never raises for what the other end does."""
    sent = time.perf_counter()
    status, pieces, first, headers, complete, error = 0, list[str](), None, dict[str, str](), False, ""
    body = {"model": ask.model, "prompt": ask.prompt, "max_tokens": ask.tokens, "stream": True}
    try:
        async with asyncio.timeout(timeout_s), http.post(f"{url}/v1/completions", json=body) as answer:
            status = answer.status
            headers = {k.lower()[len(HEADERS) :]: v for k, v in answer.headers.items() if k.lower().startswith(HEADERS)}
            if status != 200:
                error = (await answer.text())[:300]
            else:
                async for line in answer.content:
                    if line.startswith(b"data: {"):
                        piece = _piece(line[6:])
                        if piece and first is None:
                            first = time.perf_counter() - sent
                        pieces.append(piece)
                    complete = complete or line.startswith(b"data: [DONE]")
    except (aiohttp.ClientError, TimeoutError, OSError) as e:
        error = f"{type(e).__name__}: {e}"
    return Told(
        ask=ask,
        sent_at=sent - (sent if began is None else began),
        status=status,
        text="".join(pieces),
        first_s=first,
        total_s=time.perf_counter() - sent,
        complete=complete,
        headers=headers,
        error=error,
    )


def _piece(data: bytes) -> str:
    choices = json.loads(data).get("choices") or [{}]
    text: str = choices[0].get("text") or ""
    return text


async def drive(
    url: str,
    asks: Sequence[Ask],
    *,
    timeout_s: float = 300.0,
    over_s: float = math.inf,
    told: Callable[[Told], None] | None = None,
) -> list[Told]:
    """The whole trace, in its own time.

    Args:
        timeout_s: for one answer.
        over_s: seconds after the beginning when everything is over: what isn't answered then is told as it stands, what was not
            yet sent is left out.
        told: called with each answer as it ends.
    """
    began = time.perf_counter()
    found: list[Told] = []
    async with session() as http:

        async def one(ask: Ask) -> None:
            await asyncio.sleep(began + ask.at - time.perf_counter())
            left = began + over_s - time.perf_counter()
            answer = await ask_once(http, url, ask, timeout_s=min(timeout_s, left), began=began)
            found.append(answer)
            if told is not None:
                told(answer)

        async with asyncio.TaskGroup() as group:
            for ask in asks:
                if ask.at < over_s:
                    group.create_task(one(ask))
    return sorted(found, key=lambda each: each.sent_at)


async def in_turn(url: str, asks: Sequence[Ask], *, timeout_s: float = 300.0) -> list[Told]:
    """One after the other, each as soon as the one before is answered."""
    async with session() as http:
        return [await ask_once(http, url, ask, timeout_s=timeout_s) for ask in asks]


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie, the nearest that there is. Raises ValueError for none."""
    if not values:
        raise ValueError("a quantile of nothing")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
