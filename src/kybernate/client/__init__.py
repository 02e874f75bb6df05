"""Typed client of the agent's REST API over its Unix socket: `Client` blocks, `AsyncClient` awaits.

>>> with Client() as agent:                                                   # doctest: +SKIP
...     print([w.name for w in agent.workloads() if w.state == "paused"])
"""

from kybernate.client.asynchronous import AsyncClient
from kybernate.client.blocking import Client

__all__ = ["AsyncClient", "Client"]
