"""Processes: launching in namespaces and a cgroup, freezing, finding again, dumps and restores.

Use `launching.launch`, `tree.attach` and `tree.Tree`. Keep this file empty: the supervisor, which starts once
for each workload and must start quickly, is imported through it.
"""
