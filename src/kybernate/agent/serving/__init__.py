"""The agent's half of serving: which models there are, who of them has the VRAM, and what the activator's workers may forward to.

See proxy/design.md. `serving.py` is the front of it; `controller.py` asks the policy, `effects.py` carries out what it says.
"""
