"""kybernate.yaml's models, jobs, activator and serving: what may be written, and errors that point at the line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kybernate.model.errors import BadInput
from kybernate.model.types import GIB, TierName
from kybernate.policy.node_state import Class
from kybernate.policy.settings import PolicySettings
from kybernate.settings import Restart, Start, parse, schema
from kybernate.settings.values import WORKLOAD_PATTERN

pytestmark = pytest.mark.unit

WHOLE = """
models:
  chat:
    command: serve --name "two words" --port 8000
    environment: {PORT: 8000, NAME: x}
    port: 8000
    ready: /health
    names: [gpt-4o]
    hosts: [Chat.Example.org]
    paths: [/chat/]
    class: batch
    priority: 3
    idle: 60
    demote_after: off
    vram: 24GiB
    lowest_tier: ram
    start: eager
    image: gold
    limits: {concurrency: 4, queue: 10, max_wait: 5}
  code:
    command: [serve, --port, 8000]
    port: 8000
    ready: [curl, -f, http://127.0.0.1:8000]
    image: {name: gold-2, take: true}
    idle: off
jobs:
  train:
    command: [python, train.py]
    schedule: 22:00-06:00
    restart: on-failure
activator: {listen: "0.0.0.0:8443", workers: 2, tls: {certificate: /c, key: /k}, limits: {body: 1MiB}}
serving: {min_run: 3, preempt: [], staging: {budget: off}}
"""


def test_a_whole_file() -> None:
    settings = parse(WHOLE, origin="k.yaml")
    chat, code, train = settings.models["chat"], settings.models["code"], settings.jobs["train"]
    assert chat.command == ("serve", "--name", "two words", "--port", "8000")
    assert chat.environment == {"PORT": "8000", "NAME": "x"}
    assert (chat.hosts, chat.paths, chat.klass, chat.start) == (
        ("chat.example.org",),
        ("/chat",),
        Class.BATCH,
        Start.EAGER,
    )
    assert (chat.idle, chat.demote_after, chat.vram, chat.lowest_tier) == (60, None, (24 * GIB,), TierName.RAM)
    assert chat.image is not None
    assert (chat.image.name, chat.image.take) == ("gold", False)
    assert code.command == ("serve", "--port", "8000")
    assert code.ready == ("curl", "-f", "http://127.0.0.1:8000")
    assert code.image is not None
    assert (code.image.take, code.idle, code.klass, code.cold_start) == (True, None, Class.INTERACTIVE, True)
    assert (train.klass, train.schedule, train.restart, train.cold_start) == (
        Class.BATCH,
        ("22:00-06:00",),
        Restart.ON_FAILURE,
        False,
    )
    assert settings.activator.listen == "0.0.0.0:8443"
    assert settings.serving.staging.budget == 0
    assert settings.serving.numbers() == dataclasses.replace(PolicySettings(), min_run=3, preempt=frozenset())


def test_every_number_of_the_policy_can_be_set() -> None:
    settings = parse("", origin="k.yaml").serving
    assert settings.numbers() == PolicySettings()
    known = {*type(settings).model_fields, *(f"prefetch_{name}" for name in type(settings.staging).model_fields)}
    assert {field.name for field in dataclasses.fields(PolicySettings)} <= known


M = "models:\n  a: {command: x, port: 1}\n"


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        pytest.param("models:\n  a: {port: 1}\n", 2, "models.a.command: must be given", id="no command"),
        pytest.param("models:\n  a: {command: x}\n", 2, "models.a.port: must be given", id="no port"),
        pytest.param("models:\n  a: {command: 'x \"', port: 1}\n", 2, "no command line", id="open quote"),
        pytest.param("models:\n  a: {command: [], port: 1}\n", 2, "no command to run", id="empty"),
        pytest.param("models:\n  a:\n    command: [x, {}]\n    port: 1\n", 3, "list of words", id="no word"),
        pytest.param("models:\n  A: {command: x, port: 1}\n", 2, "small letters", id="bad name"),
        pytest.param("models:\n  a: {command: x, port: 0}\n", 2, "at least 1, not 0", id="no port number"),
        pytest.param("models:\n  a: {command: x, port: 1, ready: health}\n", 2, "ready", id="ready is no path"),
        pytest.param(
            "models:\n  a: {command: x, port: 1, class: fast}\n", 2, "use 'interactive' or 'batch'", id="no class"
        ),
        pytest.param("models:\n  a: {command: x, port: 1, paths: [/]}\n", 2, "every request", id="path of all"),
        pytest.param("models:\n  a: {command: x, port: 1, hosts: ['a:1']}\n", 2, "host name", id="host with port"),
        pytest.param("models:\n  a: {command: x, port: 1, sched: 1}\n", 2, "no such setting", id="typing error"),
        pytest.param(
            "models:\n  a: {commands: x, port: 1}\n", 2, "did you mean `command`?", id="typing error of a must"
        ),
        pytest.param(
            "models:\n  a: {prioritys: 1, command: x, port: 1}\n",
            2,
            "did you mean `priority`?",
            id="typing error of a setting",
        ),
        pytest.param(M + "activator: {limits: {bdy: 1}}\n", 3, "did you mean `body`?", id="typing error below"),
        pytest.param("models:\n", 1, "leave the line out", id="nothing below"),
        pytest.param("activator: {listen: 8080}\n", 1, "HOST:PORT", id="only a port"),
        pytest.param(
            "models:\n  a: {command: x, port: 1, environment: {A: true}}\n", 2, "put it in quotes", id="no text"
        ),
        pytest.param("models:\n  pid-7: {command: x, port: 1}\n", 2, "did not start", id="name of a process"),
        pytest.param(M + "  b:\n    command: x\n    port: 1\n    names: [c, a]\n", 6, "leads to a already", id="alias"),
        pytest.param(
            M + "  b:\n    command: x\n    port: 1\n    hosts:\n     - h\n  c: {command: x, port: 1, hosts: [H]}\n",
            8,
            "leads to b already",
            id="host twice",
        ),
        pytest.param(
            "models:\n  a: {command: x, port: 1, network: host}\n  b: {command: x, port: 1, network: host}\n",
            3,
            "port 1 of the host",
            id="port twice",
        ),
        pytest.param(M + "jobs:\n  a: {command: x}\n", 4, "a model has that name", id="job and model"),
        pytest.param(
            "agent: {vram: {limit: 1GiB}}\nmodels:\n  a: {command: x, port: 1, vram: 2GiB}\n",
            3,
            "never fit",
            id="too large",
        ),
        pytest.param("models:\n  a: {command: x, port: 1, lowest_tier: object}\n", 2, "no object tier", id="no bucket"),
        pytest.param(
            "models:\n  a: {command: x, port: 1, lowest_tier: ram, demote_after: 5}\n",
            2,
            "below RAM",
            id="can't be demoted",
        ),
        pytest.param("jobs:\n  j:\n    command: x\n    schedule: [noon]\n", 4, "bad window", id="schedule"),
        pytest.param("activator: {hosts: ['a:1']}\n", 1, "host name", id="name with a port"),
        pytest.param("activator: {hosts: all}\n", 1, "must be a list", id="neither any nor a list"),
        pytest.param("activator: {origins: [chat.example.org]}\n", 1, "use an origin", id="origin without scheme"),
        pytest.param("activator: {origins: ['https://a/b']}\n", 1, "use an origin", id="origin with a path"),
        pytest.param("activator: {origins: ['*']}\n", 1, "use an origin", id="a star is no origin"),
        pytest.param("activator: {origins: any}\n", 1, "without keys_file", id="all pages, without keys"),
        pytest.param("activator: {heartbeat: 0}\n", 1, "heartbeat", id="no time between comments"),
        pytest.param(
            M + "  b:\n    command: x\n    port: 1\n    hidden_names: [c, a]\n",
            6,
            "leads to a already",
            id="hidden alias",
        ),
        pytest.param(
            "models:\n  a: {command: x, port: 1, rewrite_model: ''}\n", 2, "printable characters", id="told no name"
        ),
        pytest.param("activator: {listen: localhost}\n", 1, "HOST:PORT", id="no port to listen on"),
        pytest.param("activator:\n  tls: {key: /k}\n", 2, "certificate and key", id="half of TLS"),
        pytest.param("serving: {policy: best}\n", 1, "no policy", id="no such policy"),
        pytest.param("serving:\n  time_zone: Mars/North\n", 2, "no time zone", id="no such time zone"),
        pytest.param(
            "models:\n  a: {command: x, port: 1, image: {name: g, take: true}}\n"
            "  b: {command: x, port: 1, image: {name: g, take: true}}\n",
            3,
            "takes the image g",
            id="image twice",
        ),
    ],
)
def test_an_error_is_one_line_with_file_and_line(text: str, where: int, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(text, origin="k.yaml")
    message = str(caught.value)
    assert message.startswith(f"k.yaml:{where}: "), message
    assert words in message
    assert "\n" not in message


def test_two_with_networks_of_their_own_may_use_one_port() -> None:
    assert len(parse(M + "  b: {command: x, port: 1}\n", origin="k.yaml").models) == 2


def test_pages_heartbeats_and_paths() -> None:
    activator = parse("", origin="k.yaml").activator
    assert (activator.origins, activator.heartbeat, activator.upstream) == ((), None, True)
    text = "activator: {origins: ['HTTPS://Chat.Example.org:443', 'http://localhost:3000'], heartbeat: 15}\n"
    activator = parse(text, origin="k.yaml").activator
    assert (activator.origins, activator.heartbeat) == (("https://chat.example.org", "http://localhost:3000"), 15)
    assert parse("activator: {origins: any, keys_file: /k}\n", origin="k.yaml").activator.origins == "any"
    assert parse("activator: {heartbeat: off}\n", origin="k.yaml").activator.heartbeat is None


def test_the_schema_knows_every_section_and_its_texts() -> None:
    made = schema()
    assert set(made["properties"]) == {"agent", "models", "jobs", "activator", "serving"}
    assert "class" in made["$defs"]["ModelSettings"]["properties"]
    assert made["additionalProperties"] is False
    assert made["$defs"]["ModelSettings"]["properties"]["port"].keys() == {"description", "maximum", "minimum", "type"}
    assert made["properties"]["models"]["propertyNames"]["pattern"] == WORKLOAD_PATTERN


def test_the_page_of_the_configuration_names_the_schema() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
    assert "yaml-language-server: $schema=" in page.read_text()
