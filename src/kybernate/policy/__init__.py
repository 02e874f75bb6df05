"""Who shall have VRAM, when: pure functions from a picture of the node to a plan. No clock, no effects, no logging."""
