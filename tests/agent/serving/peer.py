"""One end of the activator's socket: says how many requests there are, and sees what it may forward to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from kybernate.model.messages import (
    Close,
    Configure,
    Drained,
    End,
    Hello,
    Load,
    Message,
    Open,
    Refuse,
    Share,
    Status,
    decode,
    encode,
)


class Peer:
    """A worker without HTTP. Each model's requests are what the test says."""

    def __init__(self, path: Path, *, pid: int, worker: int = 0, open_epochs: dict[str, int] | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._lock = threading.Lock()
        self.configured: Configure | None = None
        self.opened: dict[str, Open] = {}
        self.epochs: dict[str, int] = dict(open_epochs or {})
        self.statuses: dict[str, Status] = {}
        self.refusals: dict[str, Refuse] = {}
        self.shares: dict[str, int] = {}
        self.closes: list[Close] = []
        self.ended: End | None = None
        self.on_refusal: Callable[[Refuse], None] = lambda _: None
        self._loads: dict[str, Load] = {}
        self._say(Hello(worker=worker, pid=pid, open_epochs=self.epochs, listening=True))
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()

    def request(self, model: str, *, waiting: int = 0, in_flight: int = 0, ended: int = 0, still: int = 0) -> None:
        """From now on it has so many of them; `ended` more have ended. `still`: of those in flight."""
        with self._lock:
            old = self._loads.get(model)
            done = (0 if old is None else old.ended) + ended
            begun = max(waiting + in_flight + done, 0 if old is None else old.begun)
            load = Load(
                model=model,
                epoch=self.epochs.get(model, 0),
                waiting=waiting,
                oldest_s=0.0 if waiting else None,
                in_flight=in_flight,
                begun=begun,
                ended=done,
                service_s=None,
                still=still,
            )
            self._loads[model] = load
            self._socket.sendall(encode(load))
            if not in_flight:
                self._drain(model)

    def answer(self, model: str) -> None:
        """All that wait are answered at once."""
        old = self._loads[model]
        self.request(model, ended=old.waiting + old.in_flight)

    def is_open(self, model: str) -> bool:
        with self._lock:
            return model in self.epochs

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _say(self, message: Message) -> None:
        self._socket.sendall(encode(message))

    def _drain(self, model: str) -> None:
        for close in [close for close in self.closes if close.model == model]:
            self.closes.remove(close)
            self._say(Drained(model=model, epoch=close.epoch))

    def _hear(self) -> None:
        with self._socket.makefile("rb") as lines:
            for line in lines:
                message = decode(line)
                with self._lock:
                    self._one(message)

    def _one(self, message: Message | None) -> None:
        match message:
            case Configure():
                self.configured = message
            case Open(model=model):
                self.opened[model] = message
                self.epochs[model] = message.epoch
                self.refusals.pop(model, None)
            case Close(model=model, preempt=preempt):
                self.epochs.pop(model, None)
                self.closes.append(message)
                load = self._loads.get(model)
                if load is None or load.in_flight <= load.still or preempt:
                    self._drain(model)
            case Status(model=model):
                self.statuses[model] = message
                self.refusals.pop(model, None)
            case Refuse(model=model):
                self.refusals[model] = message
                self.on_refusal(message)
            case Share(model=model, concurrency=concurrency):
                self.shares[model] = concurrency
            case End():
                self.ended = message
