"""What `check` says of commands that a shell, a container or another user would be needed for, and of those that are right."""

from __future__ import annotations

import pytest
import yaml

from kybernate.doctor.command_lint import of_command
from kybernate.doctor.config_lint import advice, too_large
from kybernate.model.types import GIB, GpuUuid
from kybernate.settings import parse
from kybernate.settings.specs import served_of

pytestmark = pytest.mark.unit

SHELL = "no shell is asked; `[sh, -c, 'exec ...']` asks one"
AND = f"`&&` is an argument of the program: {SHELL}"
CD = "`cd` is a shell's word and no program: set `directory`"
HOME = f"`~/models/a.gguf` is passed on as it stands: write the directory, {SHELL}"
PORT = "it says port 9000, and `port` is 8000: requests go to 8000"
SUDO = "sudo drops LD_PRELOAD, so only the driver's checkpoint then moves its VRAM: leave it out and set `user`"
DOCKER = "docker starts the program in a container, out of Kybernate's sight: start the program itself"
SSH = "ssh starts the program in another machine, out of Kybernate's sight: start the program itself"
ENV = "`env` without LD_PRELOAD: only the driver's checkpoint then moves its VRAM; name the variables to change in `environment`"


def said(command: str, *, port: int | None = 8000) -> list[str]:
    """Of a command as somebody writes it into a file."""
    settings = parse(f"models:\n  m:\n    port: 8000\n    command: {command}\n", origin="k.yaml")
    return list(of_command(settings.models["m"].command, port=port))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        pytest.param("cd /srv && serve", [AND, CD], id="and"),
        pytest.param("serve | tee log", [f"`|` is an argument of the program: {SHELL}"], id="pipe"),
        pytest.param("serve > /tmp/log 2>&1", [f"`>` is an argument of the program: {SHELL}"], id="redirection"),
        pytest.param("serve 2>/tmp/log", [f"`2>/tmp/log` is an argument of the program: {SHELL}"], id="glued redirection"),
        pytest.param("warm; serve", [f"`warm;` is an argument with its semicolon: {SHELL}"], id="semicolon"),
        pytest.param("serve --port ${PORT}", [f"`${{PORT}}` is passed on as it stands: {SHELL}"], id="variable"),
        pytest.param("serve --key $KEY", [f"`$KEY` is passed on as it stands: {SHELL}"], id="short variable"),
        pytest.param("[serve, --threads, $(nproc)]", [f"`$(nproc)` is passed on as it stands: {SHELL}"], id="command in a command"),
        pytest.param("serve ~/models/a.gguf", [HOME], id="home"),
        pytest.param("A=1 serve", ["`A=` before a program is a shell's: set it in `environment`"], id="assignment"),
        pytest.param("export A=1", ["`export` is a shell's word and no program: set `environment`"], id="export"),
        pytest.param("serve --port 9000", [PORT], id="port"),
        pytest.param("serve --listen=0.0.0.0:9000", [PORT], id="port of an address"),
        pytest.param("sh -c 'exec serve --port 9000'", [PORT], id="port in a shell"),
        pytest.param("sudo serve", [SUDO], id="sudo"),
        pytest.param("sudo -u llm serve", [SUDO], id="sudo -u"),
        pytest.param("/usr/bin/docker run -p 8000:8000 vllm", [DOCKER], id="docker"),
        pytest.param("env -i PATH=/bin serve", [ENV], id="env -i"),
        pytest.param("env -u LD_PRELOAD serve", [ENV], id="env -u"),
        pytest.param("nice -n 5 sudo serve", [SUDO], id="behind a wrapper"),
        pytest.param("bash -lc 'cd /srv && exec sudo -E serve'", [SUDO], id="in a shell"),
        pytest.param("ssh gpu2 serve", [SSH], id="ssh"),
    ],
)  # fmt: skip
def test_what_is_most_likely_not_meant_so(command: str, words: list[str]) -> None:
    assert said(command) == words


def test_a_comment_in_a_folded_command() -> None:
    text = "models:\n  m:\n    port: 8000\n    command: >\n      serve --fast\n      # the port is ours\n      --port 8000\n"
    command = yaml.safe_load(text)["models"]["m"]["command"]
    assert "# the port" in command, "YAML takes it for text"
    [line] = advice(parse(text + "    directory: /\n", origin="k.yaml"))[:1]
    assert line.startswith("models.m.command: `#` is an argument, no comment: within a text of several lines")
    text = "models:\n  m:\n    port: 8000\n    command: serve --port 8000  # ours\n"
    assert not any("comment" in line for line in advice(parse(text, origin="k.yaml"))), "here YAML takes it for one"


@pytest.mark.parametrize(
    "command",
    [
        "vllm serve /models/chat --served-model-name chat --port 8000",
        "[llama-server, -m, /models/code.gguf, --port, '8000']",
        "sh -c 'cd /srv && exec serve --port ${PORT:-8000} > log 2>&1'",
        "[bash, -euc, 'A=1 serve; B=2 serve | tee log']",
        "env CUDA_VISIBLE_DEVICES=0 serve --port=8000",
        "env -u FOO serve",
        "nice -n 10 numactl --cpunodebind=0 serve --host 127.0.0.1 --port 8000",
        "python -m server --metrics-port 9000",
        "serve --host 0.0.0.0 --port 8000 --master-port 29500",
        "python -c 'import x; x.serve(a > 1 and b)'",
        "serve --regex '^a$' --price 5$ --tag a#b",
        "python /opt/docker/serve.py --name sudo",
    ],
)
def test_what_is_right_is_left_alone(command: str) -> None:
    assert said(command) == []


def test_a_job_has_no_port() -> None:
    assert said("train --port 9000", port=None) == []


def test_more_vram_than_there_is() -> None:
    settings = parse(
        "models:\n"
        "  fits: {command: x, port: 1, vram: 8GiB}\n"
        "  large: {command: x, port: 1, vram: 80GiB}\n"
        "  two: {command: x, port: 1, vram: [8GiB, 8GiB]}\n"
        "  on-the-small: {command: x, port: 1, vram: 20GiB, environment: {CUDA_VISIBLE_DEVICES: '1'}}\n"
        "jobs: {train: {command: x, vram: [40GiB, 20GiB]}}\n",
        origin="k.yaml",
    )
    served = served_of(settings).values()
    both = {GpuUuid("a"): 40 * GIB, GpuUuid("b"): 10 * GIB}
    assert too_large(served, both, None) == [
        "models.large.vram: 80.0 GiB will never fit: the GPU here hands out 40.0 GiB",
        "models.on-the-small.vram: 20.0 GiB will never fit: the GPU here hands out 10.0 GiB",
        "jobs.train.vram: 20.0 GiB will never fit: the GPU here hands out 10.0 GiB",
    ]
    one = {GpuUuid("a"): 40 * GIB}
    assert "models.two.vram: it has a size for more GPUs than it sees (1 here)" in too_large(served, one, None)
    assert too_large(served, {}, None) == [], "nobody knows"
