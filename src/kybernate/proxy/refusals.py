"""What is answered where there is nothing to be had. Who may not have a model is told the same as if there were none."""

from __future__ import annotations

from kybernate.proxy.heads import RequestHead
from kybernate.proxy.queueing import Refusal


def nothing_there(head: RequestHead) -> Refusal:
    where = f"{head.method.decode()} {head.path[:200].decode('latin-1')}"
    return Refusal(404, "not_found", f"nothing answers {where} here")


def no_such_model(name: str) -> Refusal:
    return Refusal(404, "model_not_found", f"the model {name[:200]!r} does not exist here")
