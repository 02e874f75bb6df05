from __future__ import annotations

import enum

from kybernate.process.tree import Tree


class Connections(enum.StrEnum):
    REFUSE = "refuse"
    CLOSE = "close"


def dumpable(tree: Tree, *, connections: Connections = Connections.REFUSE) -> list[str]:
    return []


def close_connections(tree: Tree) -> list[str]:
    return []
