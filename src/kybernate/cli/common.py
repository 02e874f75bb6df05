"""Options every command has, and how results are printed."""

from __future__ import annotations

import contextlib
import json as json_format
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, Token

from kybernate.cli.fitting import plain, plain_lines
from kybernate.model.errors import BadInput
from kybernate.model.layout import StateDirectory
from kybernate.model.quantities import format_size, parse_seconds

if TYPE_CHECKING:
    from pydantic import BaseModel

    from kybernate.client import Client
    from kybernate.model.api import OperationView

_LOOK_S = 0.25


def _to_seconds(_: type[float], tokens: Sequence[Token]) -> float:
    """A parser's converter: its errors are ValueErrors, to which it adds the option's name."""
    try:
        return parse_seconds(tokens[0].value)
    except BadInput as e:
        raise ValueError(f"{e.message}; {e.hint}") from None


Seconds = Annotated[float, Parameter(converter=_to_seconds, metavar="TIME")]
"""An option's time: seconds, or with units, as in 10m and 1h30m."""


def default_shown(value: Any) -> str | None:
    """An option's default as its help shows it: nothing for what is off, times and numbers without `.0`."""
    if value is None or value is False:
        return None
    return f"{value:g}" if isinstance(value, float) else str(value)


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """Options of every command."""

    json: Annotated[bool, Parameter(negative=(), help="Print JSON.")] = False
    state_dir: Annotated[
        Path | None,
        Parameter(help="State directory of the agent. Default: $KYBERNATE_STATE_DIR, or /run/kybernate for root."),
    ] = None

    @property
    def state(self) -> StateDirectory:
        return StateDirectory.default() if self.state_dir is None else StateDirectory(self.state_dir.absolute())

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        from kybernate.client import Client  # 0.2 s that --help needn't pay

        with Client(self.state.socket) as client:
            yield client


def print_json(value: Any) -> None:
    """A model, a list of models, or plain data."""
    print(json_format.dumps(_plain(value), indent=2))


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def print_json_line(value: BaseModel) -> None:
    """One line a value, for streams."""
    print(value.model_dump_json(), flush=True)


def say(text: str) -> None:
    """A remark beside the result: standard error, so that pipes stay clean."""
    print(plain_lines(text), file=sys.stderr, flush=True)


def say_notes(subject: str, notes: Iterable[str]) -> None:
    """What will not be as it was when this workload comes back."""
    for note in notes:
        say(f"kybernate: {subject}: {note}")


@contextlib.contextmanager
def working(what: str, *, quiet: bool, look: Callable[[], OperationView | None] | None = None) -> Iterator[None]:
    """Show that something takes its time, where somebody watches; with `look`, how many bytes of it are done.

    `look` is called in a thread, now and then, and may fail.
    """
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    ended = threading.Event()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)

        def watch() -> None:
            while look is not None and not ended.wait(_LOOK_S):
                with contextlib.suppress(Exception):  # the answer itself will tell what is wrong
                    progress.update(task, description=f"{what}{moved(look())}")

        watching = threading.Thread(target=watch, name="progress", daemon=True)
        watching.start()
        try:
            yield
        finally:
            ended.set()
            watching.join()


def moved(operation: OperationView | None) -> str:
    """How far a switch has come, in words; empty where nothing is counted."""
    if operation is None or not operation.bytes_total:
        return ""
    done = operation.bytes_done or 0
    text = f", {format_size(done)} of {format_size(operation.bytes_total)}"
    if done and operation.bytes_per_s and operation.seconds_left is not None:
        text += f", {format_size(int(operation.bytes_per_s))}/s, {operation.seconds_left:.1f} s left"
    return text


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None = None) -> None:
    """Aligned columns without ruling: the same on a terminal and in a pipe. Lines end at `width` characters."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        print("  ".join(plain(cell).ljust(most) for cell, most in zip(row, widths, strict=True))[:width].rstrip())
