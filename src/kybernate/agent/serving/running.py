"""As whom and with which environment a model or job is started. Raises BadInput for users that there aren't."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping

from kybernate.model.api import RunRequest
from kybernate.model.caller import Caller
from kybernate.model.errors import BadInput
from kybernate.settings.specs import Served

_PASSED_ON = re.compile(r"PATH|LANG|LC_[A-Z]+|TZ|TMPDIR|LD_LIBRARY_PATH|(CUDA|NVIDIA)_.*")
"""Of the agent's own variables. Others may hold secrets, a bucket's for example."""


def owner_of(served: Served) -> Caller:
    """Who runs it: its `user`, else the agent's.

    Raises:
        BadInput: there is no such user, or the agent may not run programs of others.
    """
    user = served.program.user
    if user is None:
        return Caller(pid=os.getpid(), uid=os.geteuid(), gid=os.getegid())
    try:
        found = pwd.getpwuid(int(user)) if user.isascii() and user.isdigit() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        raise BadInput(f"{served.name} shall run as {user!r}, and there is no such user") from None
    if os.geteuid() not in (0, found.pw_uid):
        raise BadInput(f"{served.name} shall run as {user!r}, which only an agent of root's may do")
    return Caller(pid=os.getpid(), uid=found.pw_uid, gid=found.pw_gid)


def run_request(served: Served, owner: Caller, own: Mapping[str, str] = os.environ) -> RunRequest:
    """What starts it.

    Args:
        own: the agent's environment.
    """
    program = served.program
    environment = {key: value for key, value in own.items() if _PASSED_ON.fullmatch(key)}
    try:
        account = pwd.getpwuid(owner.uid)
    except KeyError:
        pass
    else:
        environment |= {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}
    return RunRequest.of(
        name=served.name,
        argv=list(program.argv),
        directory=program.directory,
        environment={**environment, **program.environment},
        network=program.network,
        layers=list(program.layers),
        io_uring=program.io_uring,
        cold_start=served.cold_start,
    )
