"""A real Kubernetes on this machine, from binaries, without images from a registry and without Docker.

`start` makes one, `join` shares one between processes, `python -m tests.cluster.harness up` makes one by hand.
docs/kubernetes-notes.md has the picture.
"""

from __future__ import annotations

from tests.cluster.harness.cluster import Cluster, Shape, alone, join, start
from tests.cluster.harness.errors import ClusterError, Missing

__all__ = ["Cluster", "ClusterError", "Missing", "Shape", "alone", "join", "start"]
