"""What test_parking.py runs, each in a process of its own: `python stored_scenarios.py NAME ROOT MEMORY`."""

from __future__ import annotations

import sys
from pathlib import Path

from stored_rig import Node

from kybernate.model.types import WorkloadName


def parked_and_back(root: Path, memory: Path) -> None:
    """Written, ended, read, brought back: it goes on with the content it had, and can be paused again as any other."""
    with Node(root, memory) as node:
        node.start("w")
        node.pause("w")
        node.park("w")
        node.engine.stage(node.space, "w")
        node.revive("w", "w")
        assert node.trees["w"].frozen
        node.resume("w")
        node.goes_on("w")
        node.pause("w")
        node.resume("w")
        node.goes_on("w")
        node.exact_end("w")
        node.assert_idle()


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
