"""A real Kubernetes on this machine, from binaries, without images from a registry and without Docker.

`start` makes one; `python -m tests.kube.cluster up` does so by hand. docs/kubernetes-notes.md has the picture.
"""

from __future__ import annotations

from tests.kube.cluster.cluster import Cluster, Shape, start
from tests.kube.cluster.errors import ClusterError, Missing

__all__ = ["Cluster", "ClusterError", "Missing", "Shape", "start"]
