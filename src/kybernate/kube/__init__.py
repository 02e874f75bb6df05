"""Kubernetes: a sibling of the activator, which talks to agents by `client` only. Empty as yet.

What comes: `api` (types and schemas of the custom resources), `operator` (its decisions pure), `dra` (the kubelet's plugin, a
process of its own), `accounting` (what a node has and gives away) and `admission` (the webhook), each with a `main`.

It may import `model` and `client`; never `agent`, `cuda`, `process`, `store` or `engine`. What it needs of an agent comes by
the API, and nothing in `agent/` learns what a pod is.
"""
