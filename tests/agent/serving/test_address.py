"""By which names the activator is asked."""

from __future__ import annotations

import socket

import pytest

from kybernate.agent.serving.address import answered_hosts
from kybernate.settings import parse

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("activator", "names"),
    [
        pytest.param("{}", {"chat.example"}, id="left-out"),
        pytest.param("{listen: 'localhost:80'}", {"chat.example"}, id="localhost"),
        pytest.param("{listen: '[::1]:80'}", {"chat.example"}, id="v6"),
        pytest.param("{listen: '0.0.0.0:80'}", None, id="everywhere"),
        pytest.param("{listen: 'no.such.host.invalid:80'}", None, id="nowhere"),
        pytest.param("{keys_file: /k}", None, id="keys"),
        pytest.param("{tls: {certificate: /c, key: /k}}", None, id="tls"),
        pytest.param("{hosts: any}", None, id="any"),
        pytest.param("{hosts: []}", {"chat.example"}, id="none"),
        pytest.param("{hosts: [Box.Example], keys_file: /k}", {"box.example", "chat.example"}, id="names-and-keys"),
        pytest.param("{hosts: [box], listen: '0.0.0.0:80'}", {"box", "chat.example"}, id="names-everywhere"),
    ],
)
def test_names_that_are_answered(activator: str, names: set[str] | None) -> None:
    """Foreign pages get no further where a key is needed or a certificate must fit."""
    text = f"models: {{m: {{command: x, port: 1, hosts: [Chat.example]}}}}\nactivator: {activator}\n"
    settings = parse(text, origin="k.yaml")
    found = answered_hosts(settings)
    if names is None:
        assert found is None
    else:
        assert found is not None
        own = {settings.activator.listen.rpartition(":")[0], socket.gethostname().lower()}
        assert set(found) == names | own
