"""The GPU: driver bindings, extents and broker, pinned pool, hashing, copying, residual checkpoint."""
