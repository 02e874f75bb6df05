"""What can go wrong with stored snapshots, each with the words a person needs to act."""

from __future__ import annotations

from kybernate.model.errors import BadInput, Conflict, KybernateError


class Damaged(KybernateError):
    """What is stored isn't what was written: bits flipped, something cut off or deleted."""

    code = "damaged"


class TooNew(KybernateError):
    """Written by a newer version of the product, in a format this one can't read."""

    exit_status = 4
    http_status = 422
    code = "too_new"


class WrongKey(BadInput):
    """The key isn't the one these snapshots were written with; nothing was changed."""

    http_status = 403
    code = "wrong_key"


class TierAway(KybernateError):
    """The tier doesn't answer, or not in time; try again later."""

    exit_status = 3
    http_status = 503
    code = "tier_away"

    def __init__(self, message: str, *, hint: str | None = None, where: str | None = None) -> None:
        """`where`: the place that doesn't answer; of a copy between two, one may."""
        super().__init__(message, hint=hint)
        self.where = where


class TierRefused(TierAway):
    """The place answers, and says no: credentials, region, bucket or policy are not right. Nothing is lost, and trying again
    doesn't help before somebody has mended it."""

    exit_status = 1
    http_status = 502
    code = "tier_refused"


class NoBucket(TierRefused, BadInput):
    """There is no such bucket."""

    exit_status = 2
    http_status = 400


class TierWiped(Conflict):
    """Snapshots known to be in this tier are gone as a whole: another disk, another bucket, or emptied."""

    code = "tier_wiped"
