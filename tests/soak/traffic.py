"""Clients that never stop asking, some of whom hang up or talk nonsense; and a verdict on every single request.

A request ends well with the exact answer, or with an error answer that says why. A connection that ends without either is right
only where whoever was on its other end was killed meanwhile: such moments are *excuses*. All else is written down as wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import aiohttp

ANSWER_S = 90.0
"""Longer than any request may be held: what takes more is lost."""
REFUSALS = frozenset({429, 502, 503, 504})
ANYBODY = "*"
_MOST_WRONG = 50


@dataclass(slots=True)
class Excuse:
    """Whose connections may have been cut, from when until when."""

    who: str
    begins: float
    ends: float

    def covers(self, model: str, begins: float, ends: float) -> bool:
        return self.who in (ANYBODY, model) and self.begins <= ends and begins <= self.ends


@dataclass(frozen=True, slots=True)
class Question:
    prompt: str
    tokens: int


class Traffic:
    """Runs in a thread of its own between `start` and `stop`.

    Args:
        url: where the activator answers now; asked again for each request.
        expected: by model, every question and its answer.
        rest_s: between two requests of one client, on average.
    """

    def __init__(
        self,
        *,
        url: Callable[[], str],
        expected: Mapping[str, Mapping[Question, str]],
        seed: int,
        clients: int = 10,
        rest_s: float = 0.4,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._url = url
        self._expected = expected
        self._models = list(expected)
        self._seed = seed
        self._clients = clients
        self._rest_s = rest_s
        self._excuses: list[Excuse] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), name="traffic")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Every request under way is waited for: it must end, too."""
        self._over.set()
        self._thread.join(ANSWER_S + 30)
        if self._thread.is_alive():
            self._blame("the clients don't come to an end")

    @contextlib.contextmanager
    def excused(self, who: str, *, grace_s: float = 3.0) -> Iterator[None]:
        """Connections of this model, or of anybody, may be cut within the block and a moment longer."""
        excuse = Excuse(who, time.monotonic(), float("inf"))
        self._excuses.append(excuse)
        try:
            yield
        finally:
            excuse.ends = time.monotonic() + grace_s

    # -- clients ---------------------------------------------------------------------------------------------------------

    async def _all(self) -> None:
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http,
            asyncio.TaskGroup() as group,
        ):
            for number in range(self._clients):
                group.create_task(self._client(http, random.Random(f"{self._seed} {number}")))

    async def _client(self, http: aiohttp.ClientSession, source: random.Random) -> None:
        kinds: Sequence[tuple[Callable[..., object], float]] = (
            (self._streamed, 0.55),
            (self._whole, 0.2),
            (self._hangs_up, 0.15),
            (self._unknown, 0.05),
            (self._nonsense, 0.05),
        )
        weights = [1 / rank for rank in range(1, len(self._models) + 1)]
        while not self._over.is_set():
            kind = source.choices([k for k, _ in kinds], [w for _, w in kinds])[0]
            model = source.choices(self._models, weights)[0]
            question = source.choice(list(self._expected[model]))
            began = time.monotonic()
            self.counts["asked"] += 1
            try:
                await kind(http, source, model, question)  # type: ignore[misc]
            except (aiohttp.ClientError, OSError, TimeoutError) as e:
                self._cut(model, began, f"{type(e).__name__}: {e}")
                await asyncio.sleep(self._rest_s)
            await asyncio.sleep(source.expovariate(1 / self._rest_s))

    async def _streamed(
        self, http: aiohttp.ClientSession, source: random.Random, model: str, question: Question
    ) -> None:
        began = time.monotonic()
        async with http.post(f"{self._url()}/v1/completions", json=_body(model, question, stream=True)) as answer:
            if await self._refused(answer, model):
                return
            lines = [line async for line in answer.content if line.startswith(b"data: ")]
        if not lines or lines[-1].strip() != b"data: [DONE]":
            self._cut(model, began, f"a stream ended after {len(lines)} events")
            return
        self._compare(model, question, "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1]))

    async def _whole(self, http: aiohttp.ClientSession, source: random.Random, model: str, question: Question) -> None:
        async with http.post(f"{self._url()}/v1/completions", json=_body(model, question)) as answer:
            if not await self._refused(answer, model):
                self._compare(model, question, (await answer.json())["choices"][0]["text"])

    async def _hangs_up(
        self, http: aiohttp.ClientSession, source: random.Random, model: str, question: Question
    ) -> None:
        """At any time: while it is held, while it is answered."""
        patience = source.choice((0.01, 0.1, 0.5, 2.0)) * source.random()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._streamed(http, source, model, question)
        self.counts["hung up"] += 1

    async def _unknown(
        self, http: aiohttp.ClientSession, source: random.Random, model: str, question: Question
    ) -> None:
        async with http.post(f"{self._url()}/v1/completions", json=_body("nobody", question)) as answer:
            self._must(answer.status == 404, f"a model that nobody knows was answered {answer.status}")

    async def _nonsense(
        self, http: aiohttp.ClientSession, source: random.Random, model: str, question: Question
    ) -> None:
        async with http.post(f"{self._url()}/v1/completions", data=b'{"model": ') as answer:
            self._must(400 <= answer.status < 500, f"nonsense was answered {answer.status}")

    # -- verdicts --------------------------------------------------------------------------------------------------------

    async def _refused(self, answer: aiohttp.ClientResponse, model: str) -> bool:
        if answer.status == 200:
            return False
        text = await answer.text()
        self.counts[f"answered {answer.status}"] += 1
        if answer.status not in REFUSALS or not _says_why(text):
            self._blame(f"{model} was answered {answer.status}: {text[:200]}")
        return True

    def _compare(self, model: str, question: Question, text: str) -> None:
        self.counts["exact"] += text == self._expected[model][question]
        self._must(text == self._expected[model][question], f"{model} gave a wrong answer to {question}: {text[:80]!r}")

    def _cut(self, model: str, began: float, how: str) -> None:
        ends = time.monotonic()
        if any(excuse.covers(model, began, ends) for excuse in self._excuses):
            self.counts["cut, excused"] += 1
        else:
            self._blame(f"{model}, asked {ends - began:.2f} s ago, was left without an answer: {how}")

    def _must(self, true: bool, otherwise: str) -> None:
        if not true:
            self._blame(otherwise)

    def _blame(self, text: str) -> None:
        self.counts["wrong"] += 1
        if len(self.wrong) < _MOST_WRONG:
            self.wrong.append(f"{time.strftime('%H:%M:%S')} {text}")


def _body(model: str, question: Question, *, stream: bool = False) -> dict[str, object]:
    return {"model": model, "prompt": question.prompt, "max_tokens": question.tokens, "stream": stream}


def _says_why(text: str) -> bool:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return bool(json.loads(text)["error"]["message"])
    return False
