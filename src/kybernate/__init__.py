"""Kybernate: VRAM is a cache for active workloads."""

__version__ = "0.2.0"
