"""Single keys from a terminal, by name, without waiting for Enter. Ctrl-C stays what it is.

Limits: arrows and the like as terminals of the last forty years send them; anything else that begins with Escape is dropped.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import termios
import tty
from collections.abc import Iterator

_NAMES = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"\x1b[H": "home",
    b"\x1b[F": "end",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
}
_CUT = re.compile(rb"\x1b([\[O][0-9;]*)?\Z")
"""The beginning of a key: a terminal's bytes needn't be there all at once."""
_REST_S = 0.1
"""The bytes of one key arrive together, or soon."""


@contextlib.contextmanager
def single_keys() -> Iterator[int | None]:
    """The descriptor to read keys from while the block runs; None where standard input is no terminal. Put back at its end."""
    descriptor = sys.stdin.fileno() if sys.stdin is not None and not sys.stdin.closed else -1
    if descriptor < 0 or not os.isatty(descriptor):
        yield None
        return
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def read_keys(descriptor: int) -> list[str]:
    """Blocks for the first key, then takes what has come. Empty at the end of input."""
    try:
        text = os.read(descriptor, 256)
    except OSError:
        return []
    while _CUT.search(text) and select.select([descriptor], [], [], _REST_S)[0]:
        text += os.read(descriptor, 256)
    return names(text) or ([""] if text else [])


def names(text: bytes) -> list[str]:
    """The keys in what a terminal sent. Pure."""
    found: list[str] = []
    while text:
        if not text.startswith(b"\x1b"):
            found.append(text[:1].decode("ascii", "ignore"))
            text = text[1:]
            continue
        name = next((name for sent, name in _NAMES.items() if text.startswith(sent)), None)
        length = next((len(sent) for sent in _NAMES if text.startswith(sent)), 0) or _unknown(text)
        if name is not None:
            found.append(name)
        text = text[length:]
    return [key for key in found if key]


def _unknown(text: bytes) -> int:
    """Length of a sequence that has no name here: up to its final letter or '~'."""
    if len(text) < 2 or text[1:2] not in (b"[", b"O"):
        return min(len(text), 2)
    for i in range(2, len(text)):
        if 0x40 <= text[i] <= 0x7E:
            return i + 1
    return len(text)
