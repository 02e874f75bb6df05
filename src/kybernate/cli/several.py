"""One order for several workloads: each gets its line, one that fails keeps the others from nothing.

With one name all is as ever: the answer is one object, an error is raised. With several, or --all, --json prints a list, in
which what failed is an error with its workload; the exit status is that of the first error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from kybernate.cli.common import Common, print_json, say, working
from kybernate.model.errors import BadInput, KybernateError

if TYPE_CHECKING:
    from kybernate.client import Client
    from kybernate.model.api import OperationView, WorkloadView

_AT_ONCE = 16


def chosen(names: Sequence[str], *, all_: bool, meant: Callable[[WorkloadView], bool], common: Common) -> list[str]:
    """The workloads that an order is about.

    Args:
        meant: whom `--all` is about.

    Raises:
        BadInput: neither names nor --all, or both.
    """
    if all_ == bool(names):
        raise BadInput("give names of workloads, or --all, one of them", hint="`kybernate ps` lists the workloads")
    if names:
        return list(dict.fromkeys(names))
    with common.client() as client:
        return [workload.name for workload in client.workloads() if meant(workload)]


def order(
    names: Sequence[str],
    give: Callable[[Client, str], Any],
    tell: Callable[[Any], None],
    *,
    doing: str,
    common: Common,
    listed: bool,
    at_once: bool = False,
    look: Callable[[str], Callable[[], OperationView | None]] | None = None,
) -> int:
    """Give an order to each; the exit status.

    Args:
        doing: what is done, as in `pausing`.
        listed: print a list with --json, even of one.
        at_once: to all at the same time, where they don't need each other's room.
        look: for a name, what asks how far it is.

    Raises:
        KybernateError: of one alone.
    """
    if len(names) == 1 and not listed:
        name = names[0]
        with common.client() as client, working(f"{doing} {name}", quiet=common.json, look=look and look(name)):
            answer = give(client, name)
        print_json(answer) if common.json else tell(answer)
        return 0
    if not names and not common.json:
        print("there is none")
    answers: list[Any] = []
    status = 0
    with working(f"{doing} {', '.join(names)}", quiet=common.json or not names):
        for name, answer in _answers(names, give, common, at_once=at_once):
            if isinstance(answer, KybernateError):
                status = status or answer.exit_status
                answers.append({"workload": name, **_plain(answer)})
                if not common.json:
                    say(f"kybernate: {answer}" if _names(answer.message, name) else f"kybernate: {name}: {answer}")
            else:
                answers.append(answer)
                if not common.json:
                    tell(answer)
    if common.json:
        print_json(answers)
    return status


def _answers(
    names: Sequence[str], give: Callable[[Client, str], Any], common: Common, *, at_once: bool
) -> Iterator[tuple[str, Any]]:
    def one(name: str) -> Any:
        try:
            with common.client() as client:
                return give(client, name)
        except KybernateError as e:
            return e

    if not at_once:
        yield from ((name, one(name)) for name in names)
        return
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        yield from zip(names, pool.map(one, names), strict=True)


def _names(text: str, name: str) -> bool:
    """As a word of its own: a short name is a part of many."""
    return re.search(rf"(?<![a-z0-9-]){re.escape(name)}(?![a-z0-9-])", text) is not None


def _plain(error: KybernateError) -> dict[str, str | None]:
    return {"code": error.code, "message": error.message, "hint": error.hint}
