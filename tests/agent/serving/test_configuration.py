"""The configuration in force: what workers are told of it, what may be asked of it, and how two of them differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.agent.serving.building import job, model

from kybernate.agent.serving.address import Address
from kybernate.agent.serving.configuration import Configured, CurrentConfiguration, kinds, settings_changed
from kybernate.model.api_serving import ReloadView
from kybernate.model.messages import Configure, Key
from kybernate.model.types import Class, TierName, WorkloadName
from kybernate.settings import Settings

pytestmark = pytest.mark.unit

M, J, OTHER = WorkloadName("m"), WorkloadName("j"), WorkloadName("other")


def configured(*served: Any, keys: tuple[Key, ...] = (), pair: str = "", **settings: Any) -> Configured:
    found = Settings.model_validate(settings)
    address = Address("127.0.0.1:1", 1, None, None, None, pair=pair)
    return Configured(found, {each.name: each for each in served}, keys, address)


# -- what workers are told -----------------------------------------------------------------------------------------------


def test_nothing_configured_is_the_messages_own_defaults() -> None:
    assert configured().message() == Configure(), "else worker and file would disagree about what is usual"


def test_models_are_told_and_jobs_are_none_of_the_workers_business() -> None:
    message = configured(model("m"), job("j")).message()
    assert [endpoint.model for endpoint in message.endpoints] == ["m"]


def test_each_setting_of_the_activator_reaches_the_workers() -> None:
    key = Key("k", "0" * 64)
    message = configured(
        keys=(key,),
        activator={
            "origins": ["https://a.org"],
            "upstream": False,
            "heartbeat": 5,
            "record": "/r/trace.jsonl",
            "limits": {"body": "1MiB", "held": 7, "held_bytes": "2MiB", "idle": 9},
        },
    ).message()
    assert (message.keys, message.origins, message.upstream) == ((key,), ("https://a.org",), False)
    assert (message.heartbeat_s, message.idle_s) == (5, 9)
    assert (message.body_max, message.held_max, message.held_bytes_max) == (1 << 20, 7, 2 << 20)
    assert message.record == "/r/trace.jsonl"


def test_any_origin_is_a_star() -> None:
    assert configured(activator={"origins": "any"}).message().origins == ("*",)


# -- what is asked of it -------------------------------------------------------------------------------------------------


@pytest.fixture
def current() -> CurrentConfiguration:
    made = CurrentConfiguration()
    made.replace(
        configured(
            model("m", lowest_tier=TierName.NVME),
            job("j", lowest_tier=TierName.RAM),
            serving={"preempt": ["batch"]},
            activator={"grace": 12},
        )
    )
    return made


def test_before_the_first_one_nothing_is_served() -> None:
    empty = CurrentConfiguration()
    assert empty.served == {}
    assert empty.port_of(M) is None
    assert not empty.may_preempt(M)
    assert not empty.keeps_in_ram(M)


def test_only_what_is_of_a_class_that_may_be_cut_off_is(current: CurrentConfiguration) -> None:
    assert (current.served[J].klass, current.served[M].klass) == (Class.BATCH, Class.INTERACTIVE)
    assert [current.may_preempt(name) for name in (J, M, OTHER)] == [True, False, False]


def test_a_model_has_a_port_and_nobody_else(current: CurrentConfiguration) -> None:
    assert [current.port_of(name) for name in (M, J, OTHER)] == [8000, None, None]


def test_who_goes_no_deeper_than_ram_says_so(current: CurrentConfiguration) -> None:
    assert [current.keeps_in_ram(name) for name in (J, M, OTHER)] == [True, False, False]
    assert current.grace_s == 12


# -- differences ---------------------------------------------------------------------------------------------------------

KEYS = Path("/etc/keys")


def test_the_same_twice_differs_in_nothing() -> None:
    assert settings_changed(configured(), configured()) == []


def test_settings_are_named_as_in_the_file() -> None:
    found = settings_changed(configured(), configured(activator={"grace": 5}, serving={"policy": "lru"}))
    assert found == ["activator.grace", "serving.policy"]


def test_new_keys_in_the_same_file_are_a_change_and_another_file_is_one_change() -> None:
    one, two = (Key("k", digit * 64) for digit in "01")
    file = {"keys_file": str(KEYS)}
    assert settings_changed(configured(keys=(one,), activator=file), configured(keys=(two,), activator=file)) == [
        "the keys in activator.keys_file"
    ]
    assert settings_changed(configured(), configured(keys=(one,), activator=file)) == ["activator.keys_file"]


def test_a_renewed_certificate_is_a_change_though_its_name_is_the_same() -> None:
    assert settings_changed(configured(pair="old"), configured(pair="new")) == ["the files of activator.tls"]


def test_what_became_of_names_is_said_in_one_order() -> None:
    view = ReloadView(added=["a"], removed=["r"], changed=["c"], settings=["activator.grace"])
    assert kinds(view) == [("added", ["a"]), ("removed", ["r"]), ("changed", ["c", "activator.grace"])]
