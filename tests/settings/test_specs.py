"""What the file says of models and jobs, as the controller has it."""

from __future__ import annotations

import pytest

from kybernate.model.types import WorkloadName, with_private_tmp
from kybernate.settings import parse
from kybernate.settings.specs import served_of

pytestmark = pytest.mark.unit

A = WorkloadName("a")
YAML = """
models:
  a: {command: x, port: 1, vram: 24GiB}
  b: {command: x, port: 1, vram: 24GiB}
  c: {command: x, port: 1, vram: 40GiB}
  e: {command: x, port: 1, vram: 90GiB}
  unknown: {command: x, port: 1}
jobs:
  train: {command: x, vram: 30GiB}
"""


def test_another_program_has_another_fingerprint() -> None:
    one = served_of(parse(YAML, origin="k.yaml"))[A].fingerprint
    assert served_of(parse(YAML.replace("vram: 24GiB", "vram: 20GiB"), origin="k.yaml"))[A].fingerprint == one
    assert served_of(parse(YAML.replace("command: x", "command: y"), origin="k.yaml"))[A].fingerprint != one


def test_a_server_is_told_the_name_that_it_knows() -> None:
    """Its own, by whichever of its names it was asked for; another one, or what the client said, where the file says so."""
    text = "models:\n  a: {command: x, port: 1, names: [n], hidden_names: [h, a], limits: {first_byte: 60}%s}\n"
    for said, told in (("", "a"), (", rewrite_model: org/real", "org/real"), (", rewrite_model: off", None)):
        endpoint = served_of(parse(text % said, origin="k.yaml"))[A].endpoint
        assert endpoint is not None
        assert (endpoint.names, endpoint.hidden, endpoint.rewrite_model) == (("n", "h", "a"), ("h", "a"), told)
        assert endpoint.limits.first_byte_s == 60


def test_a_private_tmp_is_a_layer_before_the_others() -> None:
    asked = YAML.replace("command: x,", "command: x, private_tmp: true, layers: [/tmp/cache, /data],")
    assert served_of(parse(asked, origin="k.yaml"))[A].program.layers == ("/tmp", "/tmp/cache", "/data")
    assert served_of(parse(YAML, origin="k.yaml"))[A].program.layers == ()
    assert with_private_tmp(["/data", "/tmp"], wanted=True) == ("/data", "/tmp")
