"""What a worker serves: models that come, stay, go and come again, and the rules of one configuration."""

from __future__ import annotations

import hashlib

import pytest
from tests.proxy.parts import Model, Parts

from kybernate.model.messages import Configure, Endpoint, Key
from kybernate.proxy.directory import Directory, Rules
from kybernate.proxy.held import HeldBudget

pytestmark = pytest.mark.unit


def configured(directory: Directory, *endpoints: Endpoint, keys: tuple[Key, ...] = ()) -> list[str]:
    """Returns the names of those that were made for it."""
    made: list[str] = []

    def make(endpoint: Endpoint) -> Model:
        made.append(endpoint.model)
        return Model(endpoint, HeldBudget(requests=10, size_bytes=1000))

    directory.configure(Configure(endpoints=endpoints, keys=keys), make)
    return made


def test_nothing_is_ready_before_it_was_configured_once() -> None:
    directory = Directory()
    assert not directory.ready
    assert configured(directory) == []
    assert directory.ready, "to serve nothing is a configuration, too"


def test_each_model_is_made_once_and_configured_anew_afterwards() -> None:
    directory = Directory()
    assert configured(directory, Endpoint("a", 1), Endpoint("b", 2)) == ["a", "b"]
    first = directory.backends["a"]
    assert configured(directory, Endpoint("a", 7), Endpoint("b", 2)) == []
    assert directory.backends["a"] is first
    assert first.endpoint.port == 7


def test_a_model_that_is_gone_leads_nowhere_but_is_known_until_it_is_idle() -> None:
    directory = Directory()
    configured(directory, Endpoint("a", 1, names=("alias",)))
    backend = directory.backends["a"]
    configured(directory)
    assert directory.backends == {}
    assert directory.backend_named("alias") is None
    assert directory.known("a") is backend
    assert list(directory.all()) == [backend]
    directory.sweep()
    assert directory.known("a") is None, "nothing was in flight"


def test_one_that_comes_back_before_it_is_forgotten_is_the_same() -> None:
    directory = Directory()
    configured(directory, Endpoint("a", 1))
    backend = directory.backends["a"]
    configured(directory)
    assert configured(directory, Endpoint("a", 2)) == []
    assert directory.backends["a"] is backend
    assert list(directory.all()) == [backend], "and not twice"
    directory.sweep()
    configured(directory)
    directory.sweep()
    assert configured(directory, Endpoint("a", 3)) == ["a"]


def test_a_model_is_found_by_any_of_its_names_and_by_no_other() -> None:
    directory = Directory()
    configured(directory, Endpoint("a", 1, names=("gpt", "Qwen/Qwen3")), Endpoint("b", 2))
    for name in ("a", "gpt", "Qwen/Qwen3"):
        assert directory.backend_named(name) is directory.backends["a"]
    assert directory.backend_named("GPT") is None
    assert directory.backend_named("") is None
    assert set(directory.statuses()) == {"a", "b"}


def test_rules_are_those_of_the_message_and_its_defaults() -> None:
    rules = Rules.of(Configure(body_max=5, heartbeat_s=2.5, idle_s=9, upstream=False, origins=("https://a",)))
    assert (rules.body_max, rules.heartbeat_s, rules.idle_s, rules.upstream) == (5, 2.5, 9, False)
    assert rules.origins is not None
    plain = Rules.of(Configure())
    assert plain.origins is None, "no page of another site may ask"
    assert not plain.keys.needed
    assert (plain.body_max, plain.idle_s, plain.upstream) == (Rules().body_max, Rules().idle_s, Rules().upstream)


def test_with_keys_strangers_are_refused_from_then_on() -> None:
    parts = Parts(Endpoint("m", 1))
    assert not parts.services.directory.rules.keys.needed
    parts.configure(Endpoint("m", 1), keys=(Key("k", hashlib.sha256(b"secret").hexdigest()),))
    assert parts.services.directory.rules.keys.needed
