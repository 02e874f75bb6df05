"""Run a command among a workload's processes: in its namespaces, as its user, with its environment.

The environment is the workload's own user's, so nothing that is still root may use it: a program of ours enters, becomes
that user, and only then looks the command up and runs it. It ends when its caller does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import kybernate
from kybernate.model.errors import WorkloadLost
from kybernate.process import namespaces
from kybernate.process.images import read_launched
from kybernate.process.tree import Tree

_START = "import sys; sys.path.append(sys.argv[1]); from kybernate.process.entering import main; main()"
_NOT_FOUND = 127
_NAMESPACES = (
    namespaces.NEW_MOUNTS | namespaces.NEW_UTS | namespaces.NEW_IPC | namespaces.NEW_PIDS | namespaces.NEW_NETWORK
)
_OUR_OWN = ("LD_PRELOAD", "KYBERNATE_RUN_DIRECTORY")
"""Of the workload's environment: a command beside it has no part in its GPU memory."""


def run_inside(tree: Tree, command: Sequence[str], *, timeout_s: float) -> tuple[int, str]:
    """Run it to its end. Returns its exit status (127: there is no such command) and the last of what it complained about.

    Raises:
        WorkloadLost: the workload has ended.
        TimeoutError: it took longer; it was killed.
        Unsupported, KybernateError: how the workload was started isn't known.
    """
    launched = read_launched(tree.run_directory)
    main_pid = tree.main_pid()
    try:
        pidfd = os.pidfd_open(main_pid or 0)
    except (OSError, ValueError) as e:
        raise WorkloadLost(f"workload {tree.name} has ended") from e
    job = {
        "command": list(command),
        "environment": {k: v for k, v in launched.environment.items() if k not in _OUR_OWN},
        "directory": launched.directory,
        "uid": launched.uid,
        "gid": launched.gid,
        "groups": list(launched.groups),
        "pidfd": pidfd if tree.isolated else None,
        "root": os.geteuid() == 0,
    }
    try:
        if tree.main_pid() != main_pid:  # after opening: so the number wasn't another process's
            raise WorkloadLost(f"workload {tree.name} has ended")
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _START, str(Path(kybernate.__file__).parents[1])],
            input=json.dumps(job).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            pass_fds=(pidfd,),
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise TimeoutError from e
    finally:
        os.close(pidfd)
    said = done.stderr[-400:].decode(errors="replace").strip().splitlines()
    return done.returncode, said[-1] if said else ""


def main() -> None:
    """The program that enters; single-threaded, as joining namespaces demands."""
    job = json.load(sys.stdin)
    if job["pidfd"] is not None:
        try:
            namespaces.setns(job["pidfd"], _NAMESPACES)
        except OSError as e:
            sys.exit(f"can't enter the workload's namespaces: {e}")
        os.close(job["pidfd"])
    child = os.fork()  # a pid namespace is for children only
    if child:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        sys.exit(code if code >= 0 else 128 - code)
    if job["root"]:
        if job["pidfd"] is not None:
            namespaces.drop_capabilities()  # it may be root's workload; it has no more than that
        os.setgroups(job["groups"])
        os.setgid(job["gid"])
        os.setuid(job["uid"])
    namespaces.die_with_parent(signal.SIGKILL)  # after the change of user, which undoes it
    devnull = os.open(os.devnull, os.O_RDONLY)
    os.dup2(devnull, 0)
    try:
        os.chdir(job["directory"])
        os.execvpe(job["command"][0], job["command"], job["environment"])
    except OSError as e:
        os.write(2, f"{job['command'][0]}: {e.strerror}\n".encode())
        os._exit(_NOT_FOUND)
