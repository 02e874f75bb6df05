"""What can go wrong with a test cluster, in one line each."""

from __future__ import annotations


class ClusterError(Exception):
    """The cluster could not be made or used; the message says what failed, where its log is and what to do."""


class Missing(ClusterError):
    """Programs are missing; the message names them and how to get them."""
