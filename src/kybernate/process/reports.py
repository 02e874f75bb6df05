"""How a start went: what the opener and the supervisor reported, as an error for people where it failed."""

from __future__ import annotations

import ast
import errno
import os
from pathlib import Path
from typing import Any

from kybernate.model.errors import BadInput, KybernateError, NoRoom, Unsupported
from kybernate.process.records import RESTORE
from kybernate.process.specs import LaunchSpec

FULL = (errno.ENOSPC, errno.EDQUOT)


def full(what: str, directory: Path) -> NoRoom:
    """The error where the agent's own directory has no room left."""
    return NoRoom(f"{what}: {directory} is full", hint="make room there; `kybernate doctor` says what fills it")


def check_reports(spec: LaunchSpec, text: str) -> None:
    """Raises BadInput, Unsupported, KybernateError: it did not start; says why."""
    reports: list[tuple[Any, ...]] = []
    other: list[str] = []
    for line in text.splitlines():
        try:
            reports.append(ast.literal_eval(line))
        except (ValueError, SyntaxError):
            other.append(line)
    for report in reports:
        if report[0] == "error":
            _, step, number, cause = report
            raise _start_error(spec, step=step, number=number, text=cause)
    if ("exec",) not in reports:
        detail = " ".join(other)[-400:] or "its supervisor was killed"
        raise KybernateError(f"workload {spec.name} did not start: {detail}")


def _start_error(spec: LaunchSpec, *, step: str, number: int | None, text: str) -> KybernateError:
    head = f"workload {spec.name}"
    if step == "restore" and spec.restored is not None:
        why = spec.restored.failure(spec.run_directory / RESTORE)
        return KybernateError(f"{head} could not be restored: {why or text}")
    if step == "network lock":
        return Unsupported(
            f"{head} can't be restored here: its connections have bytes to send, and this kernel can't hold packets back: {text}",
            hint="the dump stays; restore it where the kernel has CONFIG_CGROUP_BPF, see `kybernate doctor`",
        )
    if number in FULL:
        return full(f"{head} can't be started", spec.state_directory)
    if step == "directory":
        return BadInput(f"{head}: can't use the directory {spec.directory}: {os.strerror(number or 0)}")
    if step != "exec":
        if number == errno.EPERM:
            hint = "the agent needs CAP_SYS_ADMIN, in a container too; or launch without isolation"
            return Unsupported(f"{head} can't be isolated: {text}", hint=hint)
        return KybernateError(f"{head} did not start: {step}: {text}")
    command = spec.argv[0]
    if number == errno.ENOENT:
        if "/" in command and (spec.directory / command).exists():
            return BadInput(f"{head}: the interpreter that {command} asks for was not found")
        return BadInput(f"{head}: command not found: {command}")
    if number in (errno.EACCES, errno.EPERM):
        return BadInput(f"{head}: no permission to run {command}", hint=f"as user {spec.uid}")
    if number == errno.ENOEXEC:
        return BadInput(f"{head}: {command} is no program", hint="a script must begin with #!")
    if number == errno.E2BIG:
        return BadInput(f"{head}: its arguments and environment are too large")
    return BadInput(f"{head}: can't run {command}: {os.strerror(number or 0)}")
