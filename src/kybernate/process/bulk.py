"""What is large in a dump: the processes' memory, deleted files, archives. It goes through pipes, and no file need be in between.

A dump's directory holds the rest, which is small. Where the bulk goes and comes from is for who dumps and restores to say: a
store (`engine/host_memory.py`), or the dump's own directory (`directory_bulk`).

Imported by the program that dumps: nothing but the standard library.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PREFIXES = ("pages-", "ghost-file-", "ghost-chunk-")
_ARCHIVE = ".tar"

Zeros = Sequence[tuple[int, int]]
"""Stretches of zeros that aren't stored: where they begin in the content, and how long they are. Bytes, ascending."""


def is_bulk(name: str) -> bool:
    """Whether a file of a dump is of this kind."""
    return name.startswith(_PREFIXES) or name.endswith(_ARCHIVE)


def holds_pages(name: str) -> bool:
    """Whether it is the processes' memory, page by page."""
    return name.startswith("pages-")


@dataclass(frozen=True, slots=True)
class Taken:
    """What came through a pipe."""

    size: int
    """Bytes of what was stored: without pages of zeros."""
    zero: NDArray[np.bool_]
    """Of pages: each that came, whether it was left out since it is zeros. Else empty."""


class Sink(Protocol):
    """Where the bulk of a dump goes."""

    def take(self, name: str, pipe: int) -> Taken:
        """Store what a pipe gives until its end. Several threads call it at once, for a name each. Raises what went wrong."""

    def forget(self) -> None:
        """The dump is tried anew: all that was taken so far is of no use."""


class Source(Protocol):
    """Where the bulk of a dump comes from."""

    def send(self, name: str, pipe: int, zeros: Zeros) -> None:
        """Write one into a pipe, with these zeros put in. It is no error that nobody reads it to its end.

        Several threads call it at once, also for one name.
        """


def write_all(pipe: int, content: bytes | memoryview) -> None:
    """Raises OSError; BrokenPipeError where nobody reads it any more."""
    view = memoryview(content)
    while view:
        view = view[os.write(pipe, view) :]
