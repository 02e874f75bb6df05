"""As whom and with which environment a model is started: its own user, its own words, and none of the agent's secrets."""

from __future__ import annotations

import os

import pytest
from tests.agent.serving.building import model, program

from kybernate.agent.serving.running import owner_of, run_request
from kybernate.model.caller import Caller
from kybernate.model.errors import BadInput

pytestmark = pytest.mark.unit

ROOT = Caller(pid=1, uid=0, gid=0)
NOBODY_KNOWS = Caller(pid=1, uid=4_000_000_000, gid=5)


def test_without_a_user_it_is_the_agents() -> None:
    found = owner_of(model())
    assert (found.pid, found.uid, found.gid) == (os.getpid(), os.geteuid(), os.getegid())


@pytest.mark.parametrize("user", ["root", "0"])
def test_a_user_is_known_by_name_or_number(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = owner_of(model(program=program("x", user=user)))
    assert (found.uid, found.gid) == (0, 0)


@pytest.mark.parametrize("user", ["no-such-user", "4000000000", "9" * 40, "", "１"])
def test_a_user_that_there_is_not_is_named(user: str) -> None:
    with pytest.raises(BadInput, match=f"a shall run as {user!r}, and there is no such user"):
        owner_of(model(program=program("x", user=user)))


def test_only_roots_agent_runs_programs_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BadInput, match="which only an agent of root's may do"):
        owner_of(model(program=program("x", user="root")))


def test_only_what_says_nothing_secret_is_passed_on() -> None:
    own = {
        "PATH": "/bin",
        "LANG": "C.UTF-8",
        "LC_ALL": "C",
        "TZ": "UTC",
        "TMPDIR": "/scratch",
        "LD_LIBRARY_PATH": "/opt",
        "CUDA_VISIBLE_DEVICES": "0",
        "NVIDIA_X": "1",
        "AWS_SECRET_ACCESS_KEY": "s",
        "KYBERNATE_KEY": "s",
        "MY_PATH": "s",
        "PATHX": "s",
        "LD_PRELOAD": "s",
        "NOTIFY_SOCKET": "s",
    }
    found = run_request(model(), NOBODY_KNOWS, own).environment
    assert set(found) == {
        "PATH",
        "LANG",
        "LC_ALL",
        "TZ",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_X",
    }


def test_it_has_its_users_home_and_the_files_words_win() -> None:
    asked = model(program=program("x", environment={"PATH": "/mine", "HOME": "/elsewhere"}))
    found = run_request(asked, ROOT, {"PATH": "/bin"}).environment
    assert found == {"PATH": "/mine", "HOME": "/elsewhere", "USER": "root", "LOGNAME": "root"}


def test_the_rest_is_as_the_file_says() -> None:
    asked = model(
        program=program("serve", "--fast", directory="/m", network="host", layers=("/data",)), cold_start=False
    )
    found = run_request(asked, NOBODY_KNOWS, {})
    assert (found.name, found.argv, found.directory, found.network, found.layers, found.cold_start) == (
        "a",
        ["serve", "--fast"],
        "/m",
        "host",
        ["/data"],
        False,
    )


def test_io_uring_is_let_where_the_file_says_so_and_changes_no_others_program() -> None:
    asked = program("serve", io_uring=True)
    assert run_request(model(program=asked), NOBODY_KNOWS, {}).io_uring
    assert not run_request(model(), NOBODY_KNOWS, {}).io_uring
    without = program("serve")
    known = "7d3a16be"  # of the version before: a new agent must not start it anew
    assert without.fingerprint(None).startswith(known)
    assert asked.fingerprint(None) != without.fingerprint(None)
