"""The debugger: looks at a workload's GPU memory, in the pool or in a snapshot, and changes nothing. Empty as yet.

What comes: `extents` (from an address to bytes), `diff` (two snapshots, by the ids of their chunks), `symbols`, `frames` and
`attach`.

It may import `engine` (what reads), `store` and `model`; never `agent`, nor what controls processes.
"""
