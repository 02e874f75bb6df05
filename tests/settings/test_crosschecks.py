"""Settings that contradict each other: names and addresses that two have, sizes that never fit, tiers that aren't there."""

from __future__ import annotations

from typing import Any

import pytest

from kybernate.settings import Settings
from kybernate.settings.crosschecks import problems

pytestmark = pytest.mark.unit


def model(port: int = 1, **settings: Any) -> dict[str, Any]:
    return {"command": "x", "port": port} | settings


def found(**data: Any) -> dict[str, str]:
    return {".".join(map(str, where)): text for where, text in problems(Settings.model_validate(data))}


def of(**models: dict[str, Any]) -> dict[str, str]:
    return found(models=models)


def test_what_does_not_contradict_itself_has_no_problems() -> None:
    assert found() == {}
    assert of(a=model(names=["gpt"], hosts=["a.org"], paths=["/a"]), b=model(names=["llama"], hosts=["b.org"])) == {}


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [("names", "gpt", "gpt"), ("hidden_names", "gpt", "gpt"), ("hosts", "A.org", "a.org"), ("paths", "/x/", "/x")],
)
def test_what_leads_to_two_models_is_refused_at_the_second(kind: str, value: str, shown: str) -> None:
    assert of(a=model() | {kind: [value]}, b=model() | {kind: ["/o" if kind == "paths" else "other", value]}) == {
        f"models.b.{kind}.1": f"{shown!r} leads to a already"
    }


def test_a_models_own_name_is_its_own_before_any_other_ones_alias() -> None:
    assert of(a=model(names=["b"]), b=model()) == {"models.a.names.0": "'b' leads to b already"}


def test_a_hidden_name_is_a_name_like_any_other() -> None:
    assert list(of(a=model(names=["x"]), b=model(hidden_names=["x"]))) == ["models.b.hidden_names.0"]


def test_one_model_may_name_itself_twice() -> None:
    assert of(a=model(names=["a", "x"], hidden_names=["x"])) == {}


def test_a_port_of_the_host_is_ones_own_and_networks_of_their_own_have_ports_of_their_own() -> None:
    assert of(a=model(80, network="host"), b=model(80, network="host")) == {
        "models.b.port": "a has port 80 of the host already"
    }
    assert of(a=model(80, network="host"), b=model(80)) == {}


def test_a_job_may_not_be_called_as_a_model_is() -> None:
    assert found(models={"a": model()}, jobs={"a": {"command": "x"}}) == {"jobs.a": "a model has that name"}


@pytest.mark.parametrize(("name", "taken"), [("pid-1", True), ("pid-007", True), ("pid-x", False), ("apid-1", False)])
def test_names_of_processes_that_we_did_not_start_are_taken(name: str, taken: bool) -> None:
    said = found(models={name: model()}, jobs={name: {"command": "x"}})
    assert (f"models.{name}" in said) is taken


def test_the_largest_size_is_held_against_the_limit_and_may_just_be_it() -> None:
    limited = {"vram": {"limit": "10GiB"}}
    assert found(agent=limited, models={"a": model(vram="10GiB")}) == {}
    assert found(agent=limited, models={"a": model(vram=["1GiB", "12GiB"])}) == {
        "models.a.vram": "12.0 GiB will never fit: agent.vram.limit is 10.0 GiB"
    }
    assert found(models={"a": model(vram="1TiB")}) == {}, "nobody knows how much there is"


def test_the_object_tier_is_the_lowest_only_where_there_is_one() -> None:
    job = {"train": {"command": "x", "lowest_tier": "object"}}
    assert list(found(jobs=job)) == ["jobs.train.lowest_tier"]
    assert found(jobs=job, agent={"store": {"object": {"url": "s3://bucket"}}}) == {}


def test_what_can_not_go_below_ram_is_not_sent_there_after_a_while() -> None:
    assert of(a=model(lowest_tier="ram", demote_after=60)) == {
        "models.a.demote_after": "it can't go below RAM: lowest_tier is ram"
    }
    assert of(a=model(lowest_tier="ram")) == {}
    assert of(a=model(demote_after=60)) == {}


def test_an_image_is_taken_by_one_and_used_by_any() -> None:
    take = {"name": "gold", "take": True}
    assert of(a=model(image=take), b=model(image=take)) == {"models.b.image": "a takes the image gold already"}
    assert of(a=model(image=take), b=model(image="gold"), c=model(image={"name": "gold"})) == {}


def test_any_page_may_ask_only_with_keys() -> None:
    assert list(found(activator={"origins": "any"})) == ["activator.origins"]
    assert found(activator={"origins": "any", "keys_file": "/keys"}) == {}


def test_all_problems_are_found_at_once_in_the_files_order() -> None:
    said = found(
        models={"a": model(names=["x"]), "b": model(names=["x"]), "pid-5": model(lowest_tier="ram", demote_after=5)},
        jobs={"a": {"command": "x"}},
    )
    assert list(said) == ["models.b.names.0", "jobs.a", "models.pid-5", "models.pid-5.demote_after"]
