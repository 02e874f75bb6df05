"""Why a workload did not start, from what its supervisor reported: what failed, on what, and what to do."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from kybernate.model.errors import BadInput, KybernateError, NoRoom, Unsupported
from kybernate.model.types import WorkloadName
from kybernate.process.reports import check_reports
from kybernate.process.specs import LaunchSpec

pytestmark = pytest.mark.unit


def spec(*argv: str, **given: Any) -> LaunchSpec:
    run = Path("/run/kybernate/workloads/a")
    return LaunchSpec(name=WorkloadName("a"), argv=argv or ("serve",), run_directory=run, uid=1000, gid=1000, **given)


def failed(step: str, number: int | None, text: str = "it said so", one: LaunchSpec | None = None) -> KybernateError:
    with pytest.raises(KybernateError) as refused:
        check_reports(one or spec(), f"{('error', step, number, text)!r}\n")
    return refused.value


def test_a_program_that_was_run_has_started() -> None:
    check_reports(spec(), "('step', 'namespaces')\n('exec',)\n")


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        pytest.param("", "its supervisor was killed", id="nothing was reported"),
        pytest.param("Traceback:\nboom\n", "Traceback: boom", id="its supervisor failed in its own words"),
        pytest.param("x" * 1000, "x" * 100, id="of which the end is shown"),
    ],
)
def test_one_of_which_nothing_was_heard_did_not(text: str, detail: str) -> None:
    with pytest.raises(KybernateError, match="workload a did not start: ") as refused:
        check_reports(spec(), text)
    assert refused.value.message.endswith(detail)
    assert len(refused.value.message) < 500


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        pytest.param(errno.ENOENT, BadInput, "command not found: serve", id="no such program"),
        pytest.param(errno.EACCES, BadInput, "no permission to run serve", id="no right to"),
        pytest.param(errno.EPERM, BadInput, "no permission to run serve", id="forbidden by a policy"),
        pytest.param(errno.ENOEXEC, BadInput, "serve is no program", id="a script without #!"),
        pytest.param(errno.E2BIG, BadInput, "its arguments and environment are too large", id="too much to pass"),
        pytest.param(errno.ELOOP, BadInput, "can't run serve: Too many levels of symbolic links", id="anything else"),
        pytest.param(errno.ENOSPC, NoRoom, "can't be started: /run/kybernate is full", id="no room for its files"),
        pytest.param(errno.EDQUOT, NoRoom, "can't be started: /run/kybernate is full", id="nor by its quota"),
    ],
)
def test_a_program_that_could_not_be_run(number: int, kind: type[KybernateError], words: str) -> None:
    error = failed("exec", number)
    assert type(error) is kind
    assert words in error.message


def test_a_script_whose_interpreter_is_missing_is_told_from_a_missing_script(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/nowhere/python\n")
    error = failed("exec", errno.ENOENT, one=spec("./script", directory=tmp_path))
    assert error.message == "workload a: the interpreter that ./script asks for was not found"
    error = failed("exec", errno.ENOENT, one=spec("./other", directory=tmp_path))
    assert error.message == "workload a: command not found: ./other"


def test_a_working_directory_that_is_not_there_is_named() -> None:
    error = failed("directory", errno.ENOENT, one=spec(directory=Path("/nowhere")))
    assert error.message == "workload a: can't use the directory /nowhere: No such file or directory"


def test_isolation_that_is_not_allowed_says_what_it_takes() -> None:
    error = failed("namespaces", errno.EPERM)
    assert type(error) is Unsupported
    assert error.hint is not None
    assert "CAP_SYS_ADMIN" in error.hint


def test_any_other_step_is_told_with_its_own_words() -> None:
    assert failed("mounts", errno.EINVAL).message == "workload a did not start: mounts: it said so"


def test_a_restore_without_a_way_to_hold_packets_back_says_where_it_could_go_on() -> None:
    error = failed("network lock", errno.ENOSYS)
    assert type(error) is Unsupported
    assert error.hint == "the dump stays; restore it where the kernel has CONFIG_CGROUP_BPF, see `kybernate doctor`"


def test_the_first_error_counts() -> None:
    reports = f"{('error', 'exec', errno.ENOENT, '')!r}\n{('error', 'mounts', errno.EPERM, '')!r}\n"
    with pytest.raises(BadInput, match="command not found"):
        check_reports(spec(), reports)


def test_an_error_after_the_start_is_an_error_all_the_same() -> None:
    with pytest.raises(KybernateError):
        check_reports(spec(), f"('exec',)\n{('error', 'exec', errno.ENOENT, '')!r}\n")
