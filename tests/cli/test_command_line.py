"""The command line as a person meets it: one line and exit status 2 for what makes no sense, a whole life without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.guardian import guarded

from kybernate.cli import main

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    """A state directory with a short path (sockets), without an agent."""
    root = Path(tempfile.mkdtemp(prefix="kyb-"))
    with guarded(root):
        yield root / "s"


@pytest.fixture(scope="module")
def agent(state: Path) -> Iterator[Path]:
    """A detached agent without a GPU."""
    up = kybernate("up", "--detach", "--json", state=state)
    assert up.returncode == 0, up.stderr
    assert json.loads(up.stdout)["gpus"] == []
    yield state
    down = kybernate("down", "--stop", state=state)
    assert down.returncode == 0, down.stderr


def kybernate(
    *words: str, state: Path, directory: Path | None = None, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KYBERNATE_")}
    environment["KYBERNATE_STATE_DIR"] = str(state)
    return subprocess.run(
        [sys.executable, *options, "-m", "kybernate.cli", *words],
        capture_output=True,
        text=True,
        env=environment,
        cwd=directory,
        timeout=120,
        check=False,
    )


def test_no_error_tells_the_terminal_anything(state: Path) -> None:
    """Names of files, and what others said, may have escape sequences in them: they are shown and not obeyed."""
    for words in (["check", "x\x1b]0;title\x07.yaml"], ["\x1b[2J"], ["ps", "--\x1b[31m"], ["up", "--pool", "1\x9b2J"]):
        done = kybernate(*words, state=state)
        assert done.returncode == 2
        assert not set(done.stderr) & set("\x1b\x07\x9b"), done.stderr
        assert "·" in done.stderr or "\\x" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(["launch"], "no such command: launch", id="no such command"),
        pytest.param(["resme", "x"], "did you mean resume?", id="typing error"),
        pytest.param(["ps", "--all"], "--all", id="no such option"),
        pytest.param(["pause"], "--pid", id="nothing to pause"),
        pytest.param(["pause", "x", "--pid", "3"], "--pid", id="both"),
        pytest.param(["pause", "x", "--depth", "half"], "half", id="no such depth"),
        pytest.param(["pause", "x", "--timeout", "soon"], "soon", id="no number"),
        pytest.param(["run", "Bad_Name", "--", "true"], "bad workload name", id="bad name"),
        pytest.param(["run", "--", "true"], "run takes a name", id="no name"),
        pytest.param(["run", "x"], "no command to run", id="no command"),
        pytest.param(["run", "x", "--backend", "magic", "--", "true"], "magic", id="no such backend"),
        pytest.param(["up", "-f", "/no/such/file.yaml"], "can't read", id="no such file"),
        pytest.param(["up", "--pool", "big"], "no size", id="no size"),
        pytest.param(["up", "--listen", "7070"], "can't listen", id="no address"),
        pytest.param(["up", "--listen", "0.0.0.0:0"], "no TLS", id="open to everybody"),
        pytest.param(["check", "/no/such/file.yaml"], "can't read", id="nothing to check"),
        pytest.param(["completion", "tcsh"], "tcsh", id="no such shell"),
    ],
)
def test_nonsense_is_one_line_and_status_2(state: Path, words: list[str], says: str) -> None:
    done = kybernate(*words, state=state)
    assert done.returncode == 2, done
    assert says in done.stderr
    assert done.stderr.startswith("kybernate: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    "words", [["ps"], ["run", "x", "--", "true"], ["pause", "x"], ["logs", "x"], ["events", "-f"], ["down"], ["top"]]
)
def test_without_an_agent_it_says_how_to_start_one(tmp_path: Path, words: list[str]) -> None:
    done = kybernate(*words, state=tmp_path)
    assert done.returncode == 6
    assert done.stderr == f"kybernate: no agent answers on {tmp_path}/agent.sock (start one with `kybernate up`)\n"


def test_errors_as_json(tmp_path: Path) -> None:
    done = kybernate("ps", "--json", state=tmp_path)
    assert json.loads(done.stderr)["code"] == "agent_away"


def test_help_is_quick_and_names_every_command(state: Path) -> None:
    done = kybernate("--help", state=state, options=["-X", "importtime"])
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "kybernate.cli.main" in imported
    slow = {"aiohttp", "asyncio", "cyclopts", "httpx2", "numpy", "pydantic", "rich", "yaml"} & imported
    assert not slow, "the command line has become slow to start"
    for command in ("up", "run", "pause", "resume", "explain", "doctor", "bench"):
        assert f"\n  {command} " in done.stdout


def test_check(state: Path, tmp_path: Path) -> None:
    file = tmp_path / "kybernate.yaml"
    file.write_text("agent:\n  pool: {size: 40GiB}\n")
    assert kybernate("check", str(file), state=state).stdout == f"{file}: ok\n"
    file.write_text("agent:\n  pool: {size: 40apples}\n")
    done = kybernate("check", str(file), state=state)
    assert done.returncode == 2
    assert f"{file}:2: agent.pool.size" in done.stderr


def test_check_says_what_the_file_means_and_what_may_not_be_meant(state: Path, tmp_path: Path) -> None:
    file = tmp_path / "kybernate.yaml"
    file.write_text(
        "agent: {pool: {size: 1536MiB}, store: {directory: /no/disk/store, object: {url: 'file:///no/bucket'}}}\n"
        "models:\n"
        "  chat: {command: sh -c true, port: 1, names: [gpt], paths: [/chat], health: /ok, vram: 1GiB}\n"
        "  code: {command: /no/such/server, port: 1, health: /ok, directory: /no/such/place}\n"
        "jobs:\n"
        "  train: {command: sh, vram: 1GiB, schedule: ['20:00-08:00'], user: nobody-of-that-name}\n"
        "activator: {listen: '0.0.0.0:80', tls: {certificate: /no/c, key: /no/k}}\n"
    )
    done = kybernate("check", str(file), state=state)
    assert done.returncode == 0
    assert [line.split() for line in done.stdout.splitlines()] == [
        line.split()
        for line in (
            f"{file}: ok",
            "models on https://0.0.0.0:80, no key is needed, policy balanced",
            "NAME KIND CLASS START VRAM ASKED FOR BY",
            "chat model interactive on-demand 1.0 GiB chat, gpt, path /chat",
            "code model interactive on-demand ? code",
            "train job batch 20:00-08:00 1.0 GiB -",
            "look at models.code.command: there is no program /no/such/server here",
            "look at models.code.directory: there is no directory /no/such/place here",
            "look at models.code.health: nobody can ask there: only `hosts` or `paths` lead a probe to a model",
            "look at jobs.train.user: there is no user nobody-of-that-name here",
            "look at agent.pool.size: models and jobs take 2.0 GiB, the pool has 1.5 GiB: some go to the disk and back, slowly",
            "look at agent.store.directory: there is no directory /no/disk here in which to make it",
            "look at agent.store.object.url: there is no directory /no/bucket here",
            "look at activator.tls.certificate: there is no /no/c here",
            "look at activator.tls.key: there is no /no/k here",
            "look at activator.keys_file: without it whoever reaches 0.0.0.0:80 may ask the models",
        )
    ]


def test_check_says_by_which_names_models_may_be_asked(state: Path, tmp_path: Path) -> None:
    file = tmp_path / "kybernate.yaml"
    model = "models: {m: {command: sh, port: 1, hosts: [chat.example]}}\n"
    file.write_text(model)
    said = kybernate("check", str(file), state=state).stdout
    assert "\nasked as localhost, any IP address, " in said
    assert "chat.example; 421 to requests for other hosts\n" in said
    file.write_text(model + "activator: {listen: '0.0.0.0:80'}\n")
    said = kybernate("check", str(file), state=state).stdout
    assert "asked as" not in said
    assert "so may any page in a browser that gets there (`activator.hosts`)\n" in said


def test_version_without_an_agent(tmp_path: Path) -> None:
    assert json.loads(kybernate("version", "--json", state=tmp_path).stdout)["agent"] is None


def test_completion(state: Path) -> None:
    script = kybernate("completion", "bash", state=state).stdout
    assert "kybernate" in script
    assert json.loads(kybernate("completion", "--json", state=state).stdout)["script"] == script[:-1]


def test_help_of_a_command_is_all_of_it(state: Path) -> None:
    done = kybernate("run", "--help", state=state)
    assert done.stdout.startswith("Usage: kybernate run NAME [OPTIONS] -- COMMAND ...\n")
    assert "resume and prefetch" in kybernate("top", "--help", state=state).stdout


@pytest.mark.parametrize("command", [*(name for name, _, _ in main.COMMANDS), "bench pause"])
def test_help_shows_no_default_that_says_nothing(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([*command.split(), "--help"]) == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"Usage: kybernate {command} " in words
    assert "[default: False]" not in words
    assert "[default: None]" not in words
    assert ".0]" not in words


def test_help_says_what_below_ram_means(state: Path) -> None:
    words = " ".join(kybernate("--help", state=state).stdout.split())
    assert "below RAM: in `nvme` (a disk) or `object` (a bucket)" in words


def test_a_bad_name_of_an_image_is_said_in_words(tmp_path: Path) -> None:
    done = kybernate("snapshot", "x", "--as", "Gold", state=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("kybernate: bad image name 'Gold' (use 1 to 63 lower-case letters")


def test_a_command_of_several_lines_stays_on_its_line(agent: Path) -> None:
    kybernate("run", "lines", "--", "sh", "-c", "sleep 60\n\x1b[31mred", state=agent)
    [line] = [line for line in kybernate("ps", state=agent).stdout.splitlines() if line.startswith("lines ")]
    assert line.endswith("sh -c sleep 60··[31mred")
    kybernate("stop", "--remove", "lines", state=agent)


def test_a_life(agent: Path, tmp_path: Path) -> None:
    done = kybernate(
        "run", "life", "--", "sh", "-c", "echo $0 $PWD --json; exec sleep 60", "-v", state=agent, directory=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("life: running")
    table = kybernate("ps", state=agent).stdout
    assert "no GPU" in table
    assert "life" in table
    [workload] = json.loads(kybernate("ps", "--json", state=agent).stdout)["workloads"]
    assert workload["state"] == "running"
    assert "life has been running" in kybernate("explain", "life", state=agent).stdout
    assert kybernate("run", "life", "--", "true", state=agent).returncode == 2
    stopped = kybernate("stop", "life", state=agent)
    assert stopped.stdout == "life: stopped, exit status 143\n"
    assert kybernate("logs", "life", state=agent).stdout == f"-v {tmp_path} --json\n"
    assert "exited" in kybernate("events", "life", state=agent).stdout
    assert kybernate("rm", "life", state=agent).stdout == "life: removed\n"
    done = kybernate("logs", "life", state=agent)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_the_exit_status_is_passed_through(agent: Path) -> None:
    assert kybernate("run", "status", "--wait", "--", "sh", "-c", "exit 42", state=agent).returncode == 42


def test_follow_prints_the_output(agent: Path) -> None:
    done = kybernate("run", "talks", "--follow", "--", "sh", "-c", "echo one; sleep 0.2; echo two; exit 3", state=agent)
    assert (done.returncode, done.stdout) == (3, "one\ntwo\n")


@pytest.mark.root
@pytest.mark.parametrize(
    "ask",
    [
        pytest.param("-m kybernate.cli ps", id="command line"),
        pytest.param(
            "-c 'import kybernate.client as c, pathlib as p; c.Client(p.Path(\"{socket}\")).node()'", id="client"
        ),
    ],
)
def test_inside_a_workload_it_says_where_it_is(agent: Path, ask: str) -> None:
    """The agent's directory is hidden there: to start another agent would be the wrong advice."""
    program = f"{sys.executable} {ask.format(socket=agent / 'agent.sock')}"
    done = kybernate("run", "inner", "--follow", "--", "sh", "-c", program, state=agent)
    said = f"no agent answers on {agent}/agent.sock: this is inside workload inner, which doesn't see its agent"
    assert done.returncode in (1, 6)
    assert f"{said} (run the command outside of it)" in done.stdout
    assert "kybernate up" not in done.stdout
    kybernate("rm", "inner", state=agent)


def test_a_reader_that_goes_away(agent: Path) -> None:
    kybernate("run", "many", "--wait", "--", "sh", "-c", "seq 200000", state=agent)
    done = subprocess.run(
        f"{sys.executable} -m kybernate.cli logs many --state-dir {agent} | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_reader_that_goes_away_before_the_end(agent: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m kybernate.cli ps --state-dir {agent} | exec true",
        shell=True,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""


def test_pause_without_a_gpu_is_unsupported(agent: Path) -> None:
    kybernate("run", "plain", "--", "sleep", "60", state=agent)
    done = kybernate("pause", "plain", state=agent)
    assert done.returncode == 4
    assert "no GPU" in done.stderr
    assert kybernate("stop", "plain", "--grace", "0", "--remove", state=agent).returncode == 0


def test_unknown_names(agent: Path) -> None:
    for command in ("pause", "resume", "stop", "rm", "logs", "explain"):
        done = kybernate(command, "nobody", state=agent)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), command
        assert "nobody" in done.stderr or "no GPU" in done.stderr


def test_the_log_as_json(state: Path) -> None:
    own = state.with_name("j")
    up = kybernate("up", "--detach", "--log-format", "json", state=own)
    try:
        assert up.returncode == 0, up.stderr
        assert kybernate("run", "logged", "--", "true", state=own).returncode == 0
    finally:
        down = kybernate("down", "--stop", state=own)
    assert down.returncode == 0, down.stderr
    lines = [json.loads(line) for line in (own / "agent.log").read_text().splitlines()]
    assert all({"timestamp", "level", "logger", "event"} <= line.keys() for line in lines)
    assert any(line["logger"] == "kybernate" and line["event"].startswith("ready on ") for line in lines)
    (started,) = [line for line in lines if line.get("kind") == "started"]
    assert (started["workload"], started["level"], started["data"]["program"]) == ("logged", "info", "true")


def test_the_way_in_over_tcp(agent: Path) -> None:
    for word in ("token", "dashboard"):
        done = kybernate(word, state=agent)
        assert (done.returncode, done.stdout) == (2, "")
        assert "agent.api.listen" in done.stderr


def test_the_address_has_the_token_where_browsers_do_not_send_it() -> None:
    root = Path(tempfile.mkdtemp(prefix="kyb-"))
    with guarded(root):
        state = root / "s"
        up = kybernate("up", "--detach", "--listen", "127.0.0.1:0", state=state)
        assert "dashboard on http://127.0.0.1:" in up.stdout, up
        token = kybernate("token", state=state).stdout.strip()
        address = kybernate("dashboard", state=state).stdout.strip()
        assert address.endswith(f"/#token={token}")
        assert kybernate("down", state=state).returncode == 0


NODE = """
models:
  chat: {command: x, port: 1, vram: 24GiB}
  code: {command: x, port: 1, vram: 40GiB, limits: {concurrency: 2}}
  unknown: {command: x, port: 1}
jobs:
  train: {command: x, vram: 30GiB}
"""


def test_simulate_compares_policies_on_drawn_requests(state: Path, tmp_path: Path) -> None:
    file = tmp_path / "kybernate.yaml"
    file.write_text(NODE)
    words = ["simulate", "-f", str(file), "--vram", "60GiB", "--traffic", "two-hot", "--requests", "200"]
    told = kybernate(*words, "--policy", "balanced,lru", state=state).stdout.splitlines()
    assert told[0].startswith("SIMULATED: two-hot, 200 requests in ")
    assert told[0].endswith("to 2 models and 1 job on 60.0 GiB of VRAM")
    assert [line.split()[0] for line in told[2:4]] == ["balanced", "lru"]
    assert told[-1] == "unknown: nobody knows what it needs, so it was left out; set its `vram`"
    found = json.loads(kybernate(*words, "--json", state=state).stdout)
    assert (found["simulated"], found["requests"], found["unknown"]) == (True, 200, ["unknown"])
    assert {one["name"]: one["class"] for one in found["workloads"]} == {
        "chat": "interactive",
        "code": "interactive",
        "train": "batch",
    }
    assert found["policies"].keys() == {"balanced", "fifo", "lru"}
    for one in found["policies"].values():
        assert (one["requests"], one["unanswered"]) == (200, 0)
        assert 0 < one["mean"] <= one["p99"] <= one["worst"]
        assert one["batch_share"] > 0
    again = json.loads(kybernate(*words, "--json", state=state).stdout)
    assert again == found, "the same seed, the same requests"
    other = json.loads(kybernate(*words, "--seed", "1", "--json", state=state).stdout)
    assert other["policies"] != found["policies"]


def test_simulate_replays_a_trace(state: Path, tmp_path: Path) -> None:
    file, trace = tmp_path / "kybernate.yaml", tmp_path / "monday.jsonl"
    file.write_text(NODE)
    lines = [{"at_s": 1764067200 + 60 * k, "model": "chat" if k % 2 else "code", "tokens": 100} for k in range(10)]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["simulate", "-f", str(file), "--trace", str(trace), "--vram", "60GiB", "--json"]
    found = json.loads(kybernate(*words, "--policy", "lru", state=state).stdout)
    assert (found["trace"], found["requests"], found["span_s"]) == ("monday", 10, 540.0)
    # They don't fit together: the job's turns aside, each request finds the other one there.
    assert found["policies"]["lru"]["switches"] >= 9


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "simulate what?"),
        (["-f", "FILE", "--vram", "30GiB"], "code needs 40.0 GiB on gpu 0, which hands out 30.0 GiB"),
        (["-f", "FILE"], "how much VRAM is there?"),
        (["-f", "FILE", "--vram", "60GiB", "--traffic", "floods"], "no traffic is called 'floods'"),
        (["-f", "FILE", "--vram", "60GiB", "--policy", "best"], "no policy is called 'best'"),
        (["-f", "FILE", "--vram", "60GiB", "--rate", "0"], "--rate"),
        (["-f", "FILE", "--traffic", "zipf", "--trace", "x"], "not both"),
        (["--trace", "/no/such/trace"], "can't read the trace /no/such/trace"),
    ],
)
def test_simulate_refuses_in_one_line(state: Path, tmp_path: Path, more: list[str], said: str) -> None:
    file = tmp_path / "kybernate.yaml"
    file.write_text(NODE)
    done = kybernate("simulate", *(str(file) if word == "FILE" else word for word in more), state=state)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
