"""The other end of CRIU's streams: a dump's images come here, and a restore's from here.

Small ones are files of the dump's directory. The bulk goes to a sink and comes from a source, each by a thread of its own. What
goes wrong here closes the pipe, at which CRIU fails and leaves all as it was; the error itself is kept for whoever asked.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from kybernate.process import bulk, image_stream
from kybernate.process.bulk import Sink, Source, Taken, Zeros

_READ_BYTES = 64 << 10
_ALWAYS_BYTES = 4 << 10
"""An empty pipe takes that much without waiting, however many pipes there are."""


class _Server:
    """One thread that answers requests, and others for what is large."""

    def __init__(self, at: Path, name: str) -> None:
        """`at`: the directory of the socket of that name. Raises OSError."""
        self._selector = selectors.DefaultSelector()
        self._stop, self._stopped = os.pipe2(os.O_CLOEXEC)
        self._listener = image_stream.listen(at, name)
        self._socket = at / name
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self._main = threading.Thread(target=self._run, name="kybernate-images")

    def __enter__(self) -> Self:
        self._main.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def error(self) -> BaseException | None:
        """What went wrong here first. CRIU knows only of a pipe that was closed."""
        return self._errors[0] if self._errors else None

    def close(self) -> None:
        """Wait for what is under way: whoever holds the other ends of the pipes is to have ended. May be called again."""
        with contextlib.suppress(OSError):
            os.close(self._stopped)
        self._stopped = -1
        self._main.join()

    def _run(self) -> None:
        """Until it is told to stop, and all that was begun is over."""
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._stop, selectors.EVENT_READ, self._leave)
        try:
            while self._selector.get_map():
                for key, _ in self._selector.select():
                    call: Callable[[], None] = key.data
                    try:
                        call()
                    except Exception as e:  # kept: the thread goes on, so that nobody waits for ever
                        self._errors.append(e)
                        self._drop(key.fileobj)
        finally:
            for thread in self._threads:
                thread.join()
            self._selector.close()

    def _accept(self) -> None:
        connection = image_stream.accepted(self._listener)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._request(connection))

    def _leave(self) -> None:
        """No new connections. Those that are there come to an end with the processes that have them."""
        self._drop(self._stop)
        self._drop(self._listener)
        self._socket.unlink(missing_ok=True)

    def _drop(self, thing: object) -> None:
        self._selector.unregister(thing)  # type: ignore[arg-type]
        if isinstance(thing, int):
            os.close(thing)
        else:
            thing.close()  # type: ignore[attr-defined]

    def _request(self, connection: socket.socket) -> None:
        name = image_stream.receive_name(connection)
        # After an error CRIU is to fail at its next request: some images, cut off, look to it like whole ones.
        if name is None or name == image_stream.LAST or self._errors:
            self._drop(connection)
            return
        self._answer(name, connection)

    def _answer(self, name: str, connection: socket.socket) -> None:
        raise NotImplementedError

    def _begin(self, task: Callable[[str, int], None], name: str, pipe: int) -> None:
        """In a thread. The pipe is closed at its end, whatever that is."""

        def run() -> None:
            try:
                task(name, pipe)
            except BaseException as e:  # it belongs to who asked for all this
                self._errors.append(e)
            finally:
                os.close(pipe)

        thread = threading.Thread(target=run, name=f"kybernate-{name}")
        self._threads.append(thread)
        thread.start()


class Capture(_Server):
    """Of a dump. Its images are whole once `close` returns and there is no error."""

    def __init__(self, directory: Path, sink: Sink) -> None:
        """Raises OSError."""
        super().__init__(directory, image_stream.CAPTURE)
        self._directory = directory
        self._sink = sink
        self.taken: dict[str, Taken] = {}
        """The bulk, by name."""

    def _answer(self, name: str, connection: socket.socket) -> None:
        pipe = image_stream.receive_pipe(connection)
        if bulk.is_bulk(name):
            image_stream.enlarge(pipe)
            self._begin(self._take, name, pipe)
            return
        try:
            file = (self._directory / name).open("wb")
        except BaseException:
            os.close(pipe)
            raise
        reader = os.fdopen(pipe, "rb", buffering=0)
        self._selector.register(reader, selectors.EVENT_READ, lambda: self._receive(reader, file))

    def _take(self, name: str, pipe: int) -> None:
        self.taken[name] = self._sink.take(name, pipe)

    def _receive(self, reader: BinaryIO, file: BinaryIO) -> None:
        """A part of a small image."""
        try:
            content = reader.read(_READ_BYTES)
            if content:
                file.write(content)
                return
            file.close()
        except BaseException:
            with contextlib.suppress(OSError):
                file.close()
            raise
        self._drop(reader)


class Serving(_Server):
    """Of a restore."""

    def __init__(
        self,
        at: Path,
        *,
        directory: Path,
        source: Source,
        names: Collection[str],
        zeros: Mapping[str, Zeros],
    ) -> None:
        """
        Args:
            at: where the socket is to be.
            directory: the dump's.
            names: of all its files.
            zeros: which are put into the bulk, by name.

        Raises:
            OSError.
        """
        # CRIU waits for each answer, and has a request for each thread: the files are read before.
        self._small = {name: (directory / name).read_bytes() for name in names if not bulk.is_bulk(name)}
        self._large = {name for name in names if bulk.is_bulk(name)}
        self._source = source
        self._zeros = zeros
        super().__init__(at, image_stream.SERVE)

    def _answer(self, name: str, connection: socket.socket) -> None:
        content = self._small.get(name)
        if content is None and name not in self._large:
            image_stream.answer(connection, exists=False)
            return
        image_stream.answer(connection, exists=True)
        pipe = image_stream.receive_pipe(connection)
        if content is None:
            image_stream.enlarge(pipe)
            self._begin(self._send, name, pipe)
        elif len(content) <= _ALWAYS_BYTES:
            try:
                os.write(pipe, content)
            except BrokenPipeError:
                pass  # CRIU needs none of it
            finally:
                os.close(pipe)
        else:
            self._begin(lambda _, pipe: _write(pipe, content), name, pipe)

    def _send(self, name: str, pipe: int) -> None:
        self._source.send(name, pipe, self._zeros.get(name, ()))


def _write(pipe: int, content: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # CRIU needs no more of it
        bulk.write_all(pipe, content)
