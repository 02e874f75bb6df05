"""Who shall have VRAM, when: pure functions from the state of the node to a plan. No clock, no effects, no logging."""
