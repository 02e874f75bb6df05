"""A workload that runs as root and tries to have the agent kill or remove what isn't the workload's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Workloads, ended

from kybernate.model.errors import KybernateError
from kybernate.process import procfs, records
from kybernate.process.tree import Tree, attach

pytestmark = pytest.mark.root

FORGER = """
import json, os, pathlib, sys
run, victim = pathlib.Path(os.environ["KYBERNATE_RUN_DIRECTORY"]), json.loads(sys.argv[1])
state = run.parents[1]
places = [run / "supervisor.json", state / "records" / f"{run.name}.json", *pathlib.Path("/proc/1/fd").iterdir()]
for place in places:
    try:
        if place.is_dir():
            place = place / f"{run.name}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(victim))
        print("wrote", place)
    except OSError as e:
        print("refused", place, e)
(run / "exit.json.new").symlink_to("/etc/forged-by-a-workload")
print("done", flush=True)
signal = __import__("signal"); signal.pause()
"""


def test_a_record_forged_by_root_is_not_believed(
    workloads: Workloads, output: Callable[[Tree], str], eventually: Eventually
) -> None:
    with subprocess.Popen(["sleep", "100"]) as victim:
        found = procfs.stat(victim.pid)
        forged = {
            "name": "work",
            "pid": victim.pid,
            "start_time": found and found.start_time,
            "boot_id": procfs.boot_id(),
            "main_inside": victim.pid,
            "isolated": False,
            "network": "host",
            "cgroup": None,
            "left_out": [],
            "layers": ["/etc"],
        }
        try:
            tree = workloads.python(FORGER, json.dumps(forged))
            eventually(lambda: "done" in output(tree))
            again = attach(tree.run_directory)
            assert again.supervisor_pid == tree.supervisor_pid != victim.pid
            assert again.isolated
            again.kill()
            again.wait(60)
            again.remove()
            assert victim.poll() is None, "somebody else's process was killed"
        finally:
            victim.kill()
    assert not os.path.lexists("/etc/forged-by-a-workload")


@pytest.mark.parametrize("what", ["fifo", "directory", "link", "garbage", "huge"])
def test_whatever_lies_in_place_of_its_end_it_has_ended(
    workloads: Workloads, eventually: Eventually, what: str
) -> None:
    put = {
        "fifo": "os.mkfifo(path)",
        "directory": "os.makedirs(path + '/x')",
        "link": "os.symlink('/dev/zero', path)",
        "garbage": "open(path, 'w').write('[' * 100000)",
        "huge": 'open(path, \'w\').write(\'{"status": 1e999, "signal": null, "time": 0}\')',
    }[what]
    program = f"import os, time; path = os.environ['KYBERNATE_RUN_DIRECTORY'] + '/exit.json'; {put}; time.sleep(100)"
    tree = workloads.python(program)
    eventually(lambda: os.path.lexists(tree.run_directory / "exit.json"))
    assert tree.exit() is None
    # Its supervisor too, so that nobody mends it.
    os.kill(tree.supervisor_pid, signal.SIGKILL)
    assert tree.wait(60) == 137
    assert not ended(tree).known
    tree.remove()


def test_a_record_of_another_name_is_refused(workloads: Workloads) -> None:
    one, other = workloads.launch("sleep", "100", name="one"), workloads.launch("sleep", "100", name="other")
    path = records.supervisor_path(one.run_directory)
    genuine = path.read_text()
    path.write_text(records.supervisor_path(other.run_directory).read_text())
    with pytest.raises(KybernateError, match="is damaged"):
        attach(one.run_directory)
    path.write_text(genuine)


def test_nobody_but_root_reads_the_records(workloads: Workloads) -> None:
    tree = workloads.launch("sleep", "100")
    assert records.supervisor_path(tree.run_directory).parent.stat().st_mode & 0o777 == 0o700
