"""What a workload finds when it starts, and starts that fail. Freezing, ending and hiding have files of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Leftovers, Workloads

from kybernate.model.errors import BadInput, Conflict, NotFound
from kybernate.model.types import WorkloadName
from kybernate.process.records import supervisor_path
from kybernate.process.specs import LaunchSpec, Network
from kybernate.process.tree import Tree, attach

pytestmark = pytest.mark.root

REPORT = """
import json, os, resource, socket, signal
print(json.dumps({
    "pid": os.getpid(), "session": os.getsid(0), "group": os.getpgrp(), "uid": os.getresuid(), "gid": os.getresgid(),
    "groups": os.getgroups(), "directory": os.getcwd(), "host": socket.gethostname(),
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")), "stdin": os.readlink("/proc/self/fd/0"),
    "stdout": os.readlink("/proc/self/fd/1"), "environment": dict(os.environ),
    "nofile": resource.getrlimit(resource.RLIMIT_NOFILE), "interfaces": [name for _, name in socket.if_nameindex()],
    "blocked": [line for line in open("/proc/self/status") if line.startswith(("SigBlk", "SigIgn", "CapBnd"))],
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()), "shm": os.listdir("/dev/shm"),
}))
"""


def report(workloads: Workloads, output: Callable[[Tree], str], **fields: Any) -> Any:
    tree = workloads.python(REPORT, **fields)
    assert tree.wait(60) == 0, output(tree)
    return json.loads(output(tree))


def test_a_workload_has_its_own_house(workloads: Workloads, output: Callable[[Tree], str]) -> None:
    found = report(workloads, output, directory=Path("/tmp"))
    assert found["host"] == "work"
    assert found["pid"] == found["session"] == found["group"] == 1000
    assert found["processes"] == [1, 1000]
    assert found["directory"] == "/tmp"
    assert found["interfaces"] == ["lo"]
    assert found["shm"] == []


def test_a_workload_runs_as_its_user(workloads: Workloads, output: Callable[[Tree], str]) -> None:
    script = "grep -E '^(Uid|Gid|Groups|CapEff)' /proc/self/status; touch $KYBERNATE_RUN_DIRECTORY/control/x && echo ok"
    tree = workloads.shell(script, uid=65534, gid=65533, groups=[65532, 100])
    assert tree.wait(60) == 0
    lines = [line.split() for line in output(tree).splitlines()]
    assert lines == [
        ["Uid:", *["65534"] * 4],
        ["Gid:", *["65533"] * 4],
        ["Groups:", "100", "65532"],
        ["CapEff:", "0" * 16],
        ["ok"],
    ]


def test_a_workload_can_not_forge_its_record(workloads: Workloads, output: Callable[[Tree], str]) -> None:
    tree = workloads.shell("cd $KYBERNATE_RUN_DIRECTORY; echo x >launch.json; ln -s x exit.json", uid=1, gid=1)
    assert tree.wait(60) != 0
    assert output(tree).count("Permission denied") == 2


def test_stdio_and_nothing_else_is_open(workloads: Workloads, output: Callable[[Tree], str]) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        found = report(workloads, output)
    finally:
        os.close(read)
        os.close(write)
    assert found["descriptors"] == [0, 1, 2, 3]  # 3 is the listing itself
    assert found["stdin"] == "/dev/null"
    assert found["stdout"].endswith("/workloads/work/output.log")


def test_signals_and_limits_are_those_of_a_fresh_process(workloads: Workloads, output: Callable[[Tree], str]) -> None:
    found = report(workloads, output)
    assert found["nofile"][0] == found["nofile"][1] >= 4096
    masks = {line.split(":")[0]: int(line.split(":")[1], 16) for line in found["blocked"]}
    assert masks["SigBlk"] == 0
    # The report is made by Python, which ignores SIGPIPE and SIGXFSZ for itself. Signals 32 and 33 are the C library's own:
    # its posix_spawn (make starts its children so) leaves them ignored, and nobody but the library can change that.
    assert masks["SigIgn"] & ~(1 << 12 | 1 << 24 | 1 << 31 | 1 << 32) == 0
    assert not masks["CapBnd"] & (1 << 21), "CAP_SYS_ADMIN"


def test_what_the_agent_was_started_to_ignore_is_not_passed_on(
    workloads: Workloads, output: Callable[[Tree], str]
) -> None:
    """As by nohup, and by `&` in a script: Ctrl-C would end nothing."""
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        found = report(workloads, output)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    [ignored] = [int(line.split(":")[1], 16) for line in found["blocked"] if line.startswith("SigIgn")]
    assert ignored & sum(1 << number - 1 for number in numbers) == 0


def test_environment_is_exactly_what_was_asked_for(workloads: Workloads, output: Callable[[Tree], str]) -> None:
    found = report(workloads, output, environment={"A": "1"})["environment"]
    found.pop("LC_CTYPE", None)  # Python's own
    assert found == {
        "A": "1",
        "KYBERNATE_WORKLOAD": "work",
        "KYBERNATE_RUN_DIRECTORY": str(workloads.state_directory / "workloads/work"),
    }


def test_the_hosts_network_is_there_on_request(workloads: Workloads, output: Callable[[Tree], str]) -> None:
    tree = workloads.shell("readlink /proc/self/ns/net", network=Network.HOST)
    assert tree.wait(60) == 0
    assert output(tree).strip() == str(Path("/proc/self/ns/net").readlink())


def test_loopback_works(workloads: Workloads, output: Callable[[Tree], str]) -> None:
    program = """
import socket
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    server = socket.create_server((address, 0), family=family)
    socket.create_connection(server.getsockname()[:2]).sendall(b"x")
    print(server.accept()[0].recv(1))
"""
    tree = workloads.python(program)
    assert tree.wait(60) == 0, output(tree)
    assert output(tree) == "b'x'\nb'x'\n"


def test_the_supervisor_is_no_part_of_the_tree(workloads: Workloads, eventually: Eventually) -> None:
    tree = workloads.shell("sleep 100 & sleep 100 & wait")
    eventually(lambda: len(tree.pids()) == 3)
    assert tree.supervisor_pid not in tree.pids()
    assert tree.host_pid(1000) == tree.main_pid() == min(tree.pids())
    assert [tree.inside_pid(pid) for pid in tree.pids()] == [1000, 1001, 1002]
    assert sorted(path.name for path in Path(f"/proc/{tree.supervisor_pid}/fd").iterdir()) == ["0", "1", "2"]
    assert tree.left_out == ()


def test_daemons_and_orphans_belong_to_the_tree(
    workloads: Workloads, eventually: Eventually, output: Callable[[Tree], str]
) -> None:
    daemon = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("daemon", os.getppid(), flush=True)
        time.sleep(100)
    os._exit(0)
os.wait()
while True: time.sleep(100)
"""
    tree = workloads.python(daemon)
    eventually(lambda: "daemon" in output(tree))
    eventually(lambda: len(tree.pids()) == 2)
    daemon_pid = max(tree.pids())
    parent = int(Path(f"/proc/{daemon_pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert parent == tree.supervisor_pid


def test_orphaned_zombies_are_reaped(
    workloads: Workloads, eventually: Eventually, output: Callable[[Tree], str]
) -> None:
    program = """
import os, time
for _ in range(50):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
print("done", flush=True)
time.sleep(100)
"""
    tree = workloads.python(program)
    eventually(lambda: "done" in output(tree))
    children = Path(f"/proc/{tree.supervisor_pid}/task/{tree.supervisor_pid}/children")
    eventually(lambda: children.read_text().split() == [str(tree.main_pid())])


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize(
    ("argv", "fields", "message"),
    [
        pytest.param(["no-such-command"], {}, "command not found: no-such-command", id="not-found"),
        pytest.param(["/no/such/file"], {}, "command not found: /no/such/file", id="no-path"),
        pytest.param(["/etc/passwd"], {}, "no permission to run /etc/passwd", id="not-executable"),
        pytest.param(["./script"], {}, "the interpreter that ./script asks for was not found", id="no-interpreter"),
        pytest.param(["./garbage"], {}, "./garbage is no program", id="garbage"),
        pytest.param(["true"], {"directory": Path("/no/such")}, "can't use the directory /no/such", id="directory"),
        pytest.param(["true", "x" * 200_000], {}, "too large", id="too-large"),
    ],
)
def test_a_failed_start_says_why_and_leaves_nothing(
    workloads: Workloads,
    state_directory: Path,
    leftovers: Leftovers,
    tmp_path: Path,
    argv: list[str],
    fields: dict[str, Any],
    message: str,
    isolated: bool,
) -> None:
    for name, text in (("script", "#!/no/interpreter\n"), ("garbage", "\x01\x02")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    with pytest.raises(BadInput) as failure:
        workloads.launch(*argv, name="left", isolated=isolated, **{"directory": tmp_path} | fields)
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)
    assert list((state_directory / "workloads").iterdir()) == []
    assert leftovers.found() == []


def test_a_failed_start_keeps_what_was_in_the_run_directory(workloads: Workloads, state_directory: Path) -> None:
    run_directory = state_directory / "workloads/work"
    run_directory.mkdir(parents=True)
    (run_directory / "agent.sock").touch()
    with pytest.raises(BadInput):
        workloads.launch("no-such-command")
    assert [path.name for path in run_directory.iterdir()] == ["agent.sock"]


def test_a_directory_the_user_may_not_enter(workloads: Workloads, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(BadInput, match=r"can't use the directory .*: Permission denied"):
        workloads.launch("true", directory=tmp_path, uid=65534, gid=65534)


@pytest.mark.parametrize("name", ["", "../escape", "a/b", "A", "x" * 64, "-a", "a\0b", ".."])
def test_names_can_not_escape(state_directory: Path, name: str) -> None:
    with pytest.raises(BadInput, match="bad workload name"):
        LaunchSpec(name=WorkloadName(name), argv=["true"], run_directory=state_directory / "workloads" / name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"argv": []}, "no command"),
        ({"argv": [""]}, "no command"),
        ({"argv": ["true", "a\0"]}, "NUL"),
        ({"environment": {"A=B": "1"}}, "bad variable name"),
        ({"directory": Path("relative")}, "must be absolute"),
        ({"run_directory": Path("/tmp/a/../work")}, "must be absolute"),
        ({"run_directory": Path("/tmp/a/other")}, "bad run directory"),
        ({"run_directory": Path("/work")}, "bad run directory"),
        ({"run_directory": Path("/tmp", "x" * 90, "work")}, "too long"),
        ({"uid": -1}, "negative"),
    ],
)
def test_senseless_specifications_are_refused(fields: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"name": "work", "argv": ["true"], "run_directory": Path("/tmp/state/workloads/work")}
    with pytest.raises(BadInput, match=message):
        LaunchSpec(**good | fields)


def test_two_of_one_name(workloads: Workloads) -> None:
    first = workloads.launch("sleep", "100")
    with pytest.raises(Conflict, match="workload work already runs"):
        workloads.launch("sleep", "100")
    assert first.alive
    assert len(first.pids()) == 1


def test_two_of_one_name_at_once(workloads: Workloads) -> None:
    results: list[Tree | Conflict] = []

    def start() -> None:
        try:
            results.append(workloads.launch("sleep", "100"))
        except Conflict as e:
            results.append(e)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([result for result in results if isinstance(result, Conflict)]) == 5
    assert len(workloads.trees) == 1


def test_a_name_is_free_again_after_the_end(workloads: Workloads, output: Callable[[Tree], str]) -> None:
    assert workloads.shell("echo one; exit 1").wait(60) == 1
    second = workloads.shell("echo two")  # without a remove in between
    assert second.wait(60) == 0
    assert output(second) == "one\ntwo\n"


def test_attach_finds_the_same_tree(workloads: Workloads) -> None:
    tree = workloads.launch("sleep", "100")
    again = attach(tree.run_directory)
    assert again.pids() == tree.pids()
    assert again.supervisor_pid == tree.supervisor_pid
    assert again.exit_status() is None
    again.kill()
    assert tree.wait(60) == 137


def test_attach_without_a_workload(state_directory: Path) -> None:
    with pytest.raises(NotFound, match="no workload was launched in"):
        attach(state_directory / "workloads/none")


def test_a_recycled_pid_is_never_taken_for_ours(workloads: Workloads) -> None:
    tree = workloads.launch("sleep", "100")
    path = supervisor_path(tree.run_directory)
    genuine = path.read_text()
    record = json.loads(genuine)
    path.write_text(json.dumps(record | {"start_time": record["start_time"] - 1}))
    stranger = attach(tree.run_directory)
    assert not stranger.alive
    path.write_text(json.dumps(record | {"boot_id": "another"}))
    with pytest.raises(NotFound, match="before the last boot"):
        attach(tree.run_directory)
    path.write_text(genuine)


def test_a_workload_outlives_the_one_who_launched_it(
    state_directory: Path, workloads: Workloads, eventually: Eventually
) -> None:
    program = f"""
import os, signal
from pathlib import Path
from kybernate.process.launching import launch
from kybernate.process.specs import LaunchSpec
launch(LaunchSpec(name="work", argv=["sleep", "100"], run_directory=Path({str(state_directory)!r}, "workloads/work"),
                  environment={{"PATH": os.environ["PATH"]}}))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    tree = attach(state_directory / "workloads/work")
    workloads.trees.append(tree)
    assert tree.alive
    assert len(tree.pids()) == 1
    tree.kill()
    assert tree.wait(60) == 137


@pytest.mark.skipif("COVERAGE_PROCESS_CONFIG" in os.environ, reason="left out: coverage counts in the supervisor")
def test_launching_is_quick(workloads: Workloads) -> None:
    taken = []
    for number in range(5):
        begin = time.perf_counter()
        workloads.launch("sleep", "100", name=f"quick-{number}")
        taken.append(time.perf_counter() - begin)
    # The bar is 0.1 s; the rest is for machines busy with other tests.
    assert min(taken) < 0.25, taken


def test_without_the_right_to_make_namespaces(state_directory: Path, leftovers: Leftovers) -> None:
    program = f"""
from pathlib import Path
from kybernate.model.errors import Unsupported
from kybernate.process.launching import launch
from kybernate.process.specs import LaunchSpec
try:
    launch(LaunchSpec(name="work", argv=["true"], run_directory=Path({str(state_directory)!r}, "workloads/work")))
except Unsupported as e:
    print(e)
"""
    command = ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "can't be isolated" in done.stdout
    assert "CAP_SYS_ADMIN" in done.stdout
    assert list((state_directory / "workloads").iterdir()) == []
    assert leftovers.found() == []
