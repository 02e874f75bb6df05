"""One error means the same at every edge: an exit status, an HTTP status and a code of its own."""

from __future__ import annotations

import pytest

from kybernate.model import errors
from kybernate.model.errors import BadInput, Busy, Conflict, KybernateError, NotFound

pytestmark = pytest.mark.unit

ALL = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, KybernateError)]


def test_each_has_its_own_code_and_http_status() -> None:
    assert len(ALL) == 10
    assert len({error.code for error in ALL}) == len(ALL)
    assert len({error.http_status for error in ALL}) == len(ALL)


def test_every_exit_status_says_failure_and_leaves_room_for_signals() -> None:
    assert all(0 < error.exit_status < 126 for error in ALL)


@pytest.mark.parametrize("error", [NotFound, Conflict])
def test_what_a_person_can_correct_is_one_exit_status(error: type[KybernateError]) -> None:
    assert issubclass(error, BadInput)
    assert error.exit_status == BadInput.exit_status


def test_nothing_temporary_looks_final() -> None:
    assert Busy.http_status == 423
    assert not issubclass(Busy, BadInput)


def test_a_hint_stands_in_parentheses_and_none_leaves_none() -> None:
    assert str(KybernateError("it failed")) == "it failed"
    assert str(KybernateError("it failed", hint="try again")) == "it failed (try again)"
    assert str(KybernateError("it failed", hint="")) == "it failed"


def test_message_and_hint_can_be_shown_apart() -> None:
    error = NotFound("no workload named 'x'", hint="`kybernate ps` lists them")
    assert (error.message, error.hint) == ("no workload named 'x'", "`kybernate ps` lists them")
