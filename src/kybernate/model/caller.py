"""Who asks for something, and what that user may do.

Whoever may open the API's socket may look; changing a workload, and seeing its command line or output, takes its own user or
root. A new workload runs as its caller.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from kybernate.model.errors import BadInput


class NotPermitted(BadInput):
    """The caller is somebody else; nothing was changed."""

    http_status = 403
    code = "not_permitted"


@dataclass(frozen=True, slots=True)
class Caller:
    """A process, and the user that it runs as."""

    pid: int
    uid: int
    gid: int

    @property
    def groups(self) -> tuple[int, ...]:
        """The user's groups by the user database; only the primary one for a user it doesn't know."""
        try:
            return tuple(os.getgrouplist(pwd.getpwuid(self.uid).pw_name, self.gid))
        except KeyError:
            return (self.gid,)

    def owns(self, uid: int) -> bool:
        """Whether the caller is root, that user, or the agent's own user."""
        return self.uid in (0, uid, os.geteuid())

    def require_owner(self, uid: int, what: str) -> None:
        """Raises NotPermitted unless the caller is root, that user, or the agent's own user."""
        if not self.owns(uid):
            raise NotPermitted(f"{what} belongs to user {uid}, you are user {self.uid}", hint="ask its owner or root")


def own_user() -> Caller:
    """The agent's own user, for those who have shown that they may speak for it."""
    return Caller(pid=0, uid=os.geteuid(), gid=os.getegid())
