"""Pause, resume, recovery: explicit steps with an undo for each, over cuda, process and store.

engine.py      the face: one call an operation
pause.py       pause: the steps out
resume.py      resume: the steps in
recovery.py    after an agent's death: what is true, and what to do about it; recovering.py asks and does it
storing.py     the engine's side towards stores: capture.py out, staging.py and reviving.py in, stored.py what is written
copies.py      the host copies and their manifests on disk
pooled.py      what lies in the pool, and what of it may go
undo.py        the stack of undos
faults.py      named places where tests kill or fail the agent
"""
