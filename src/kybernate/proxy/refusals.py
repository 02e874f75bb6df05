"""Answers that aren't the model's: an error, and what is answered where there is nothing to be had.

Who may not have a model is told the same as if there were none.
"""

from __future__ import annotations

from dataclasses import dataclass

from kybernate.proxy.heads import RequestHead


@dataclass(frozen=True, slots=True)
class Refusal:
    """One error. `code` is one of some twenty, none of a client's choice."""

    status: int
    code: str
    message: str
    retry_after_s: float | None = None


def not_found(head: RequestHead) -> Refusal:
    where = f"{head.method.decode()} {head.path[:200].decode('latin-1')}"
    return Refusal(404, "not_found", f"nothing answers {where} here")


def model_not_found(name: str) -> Refusal:
    return Refusal(404, "model_not_found", f"the model {name[:200]!r} does not exist here")


def too_large(size_max: int, what: str = "a body") -> Refusal:
    return Refusal(413, "body_too_large", f"{what} may have {size_max} bytes here")


def held_full() -> Refusal:
    return Refusal(429, "held_full", "too many bodies wait here", 1.0)
