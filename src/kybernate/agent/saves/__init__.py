"""Save games: restore points of a workload, with names, parents and labels, and how long each is kept. Empty as yet.

What comes: `timeline` (the tree of restore points) and `retention`, both pure; `saves`, the orders; `inspecting`. Images are
taken and removed by `orders`; saves are a person's history, tiers are a cache.

It may import `orders`, `records` and `inspection`; never `serving` or `api`.
"""
