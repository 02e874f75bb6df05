"""Workloads below RAM: their snapshots in the store, on the way there and back."""
