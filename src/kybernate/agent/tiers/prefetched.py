"""What is staged of snapshots that are no more: nobody can resume or clone them, so it would hold pool and disk for nothing.

An agent deletes that with the snapshot where it deletes one itself and nobody is using it. Of a bucket's snapshots others delete
some, too, and clones may be under way; so it is looked for as well.
"""

from __future__ import annotations

import logging

from kybernate.agent.tiers.store_discovery import rows, tiers
from kybernate.agent.tiers.stores import Stores
from kybernate.engine.engine import Engine
from kybernate.model.errors import KybernateError

log = logging.getLogger(__name__)


def drop_snapshot(engine: Engine, snapshot: str) -> None:
    """That snapshot has gone from every tier. What is in use stays."""
    for view in engine.staged():
        if view.snapshot == snapshot:
            engine.drop_staged(view.uid)


def drop_gone(engine: Engine, stores: Stores) -> None:
    """In a thread. Look for each staged snapshot in the tiers; nothing is dropped where one of them doesn't answer."""
    staged = engine.staged()  # before the looking, so that none is so new that it wasn't seen
    if not staged:
        return
    try:
        there = {row.uid for tier in tiers(stores) for row in rows(stores, tier)}
    except KybernateError as e:
        log.info("whether what is staged is still of use isn't known: %s", e)
        return
    for view in staged:
        if view.uid not in there and (size := engine.drop_staged(view.uid)):
            log.info("snapshot %s has gone: %d bytes of the pool are free again", view.snapshot, size)
