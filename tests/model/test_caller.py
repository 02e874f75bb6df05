"""What a user may do to whose workload."""

from __future__ import annotations

import os

import pytest

from kybernate.model.caller import Caller, NotPermitted, own_user

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("caller", "owner", "may"),
    [
        pytest.param(1000, 1000, True, id="its own user"),
        pytest.param(0, 1000, True, id="root"),
        pytest.param(500, 1000, True, id="the agent's user"),
        pytest.param(1001, 1000, False, id="somebody else"),
        pytest.param(1000, 0, False, id="a user, of root's"),
    ],
)
def test_who_owns_what(caller: int, owner: int, *, may: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 500)
    one = Caller(pid=1, uid=caller, gid=caller)
    assert one.owns(owner) is may
    if may:
        one.require_owner(owner, "workload a")
    else:
        with pytest.raises(NotPermitted, match=f"workload a belongs to user {owner}, you are user {caller}") as refused:
            one.require_owner(owner, "workload a")
        assert (refused.value.http_status, refused.value.exit_status) == (403, 2)


def test_a_user_that_the_machine_does_not_know_has_its_primary_group_alone() -> None:
    assert Caller(pid=1, uid=4_000_000_000, gid=77).groups == (77,)


def test_a_known_user_has_the_groups_of_the_user_database() -> None:
    assert 0 in Caller(pid=1, uid=0, gid=0).groups


def test_whoever_has_shown_that_it_may_speak_for_the_agent_is_its_user() -> None:
    assert (own_user().uid, own_user().gid) == (os.geteuid(), os.getegid())
