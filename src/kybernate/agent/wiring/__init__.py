"""The agent's parts, made and connected: the only place that does so. agent.py has them run.

Parts are made from below, each with all that it needs. Where two need each other, the one that is made first gets a callable that
asks for the other when it is called (`gate`, `policy`, `on_ended` ...), or there is a queue between them (`AllocationRequests`).
None of these is called before `parts.wire` has returned.
"""
