"""Where the cgroup hierarchy is found, and the edges of a workload's cgroup that a whole launch doesn't reach."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kybernate.model.types import WorkloadName
from kybernate.process.cgroups import WorkloadCgroup, group_name, roots

HYBRID = """\
30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw,relatime shared:11 - cgroup cgroup rw,name=systemd
"""
UNIFIED = "31 30 0:27 / /sys/fs/cgroup rw,nosuid,relatime - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"


@pytest.mark.parametrize(
    ("mounts", "own", "expected"),
    [
        pytest.param(UNIFIED, "0::/\n", ["/sys/fs/cgroup"], id="unified"),
        pytest.param(
            UNIFIED,
            "0::/system.slice/agent.service\n",
            ["/sys/fs/cgroup", "/sys/fs/cgroup/system.slice/agent.service"],
            id="agent-in-a-slice",
        ),
        pytest.param(UNIFIED, "0::/../../other\n", ["/sys/fs/cgroup"], id="agent-outside-of-the-mount"),
        pytest.param(HYBRID, "9:name=systemd:/a\n0::/\n", ["/sys/fs/cgroup/unified"], id="beside-version-1"),
        pytest.param("", "9:name=systemd:/a\n", [], id="none"),
        pytest.param(
            UNIFIED + "40 30 0:27 / /mnt/again rw - cgroup2 none rw\n",
            "0::/a\n",
            ["/sys/fs/cgroup", "/sys/fs/cgroup/a"],
            id="mounted-twice",
        ),
        pytest.param(
            "31 30 0:27 / /sys/fs/cgroup ro - cgroup2 none rw\n40 30 0:27 / /mnt/again rw - cgroup2 none rw\n",
            "0::/\n",
            ["/mnt/again"],
            id="mounted-twice-and-once-to-write",
        ),
        pytest.param(
            UNIFIED + "40 30 0:27 /sub /mnt/sub rw - cgroup2 none rw\n",
            "0::/\n",
            ["/sys/fs/cgroup", "/mnt/sub"],
            id="a-part-of-it-elsewhere",
        ),
    ],
)
def test_roots(mounts: str, own: str, expected: list[str]) -> None:
    assert [str(directory) for _, directory in roots(mounts=mounts, own=own)] == expected


def test_state_directories_have_groups_of_their_own() -> None:
    assert group_name(Path("/run/kybernate")) != group_name(Path("/run/other"))
    assert group_name(Path("/run/kybernate")) == group_name(Path("/run/kybernate"))


@pytest.mark.root
def test_create_twice_and_remove_twice(state_directory: Path) -> None:
    group = WorkloadCgroup.create(state_directory=state_directory, name=WorkloadName("work"))
    try:
        with pytest.raises(FileExistsError):
            WorkloadCgroup.create(state_directory=state_directory, name=WorkloadName("work"))
        assert WorkloadCgroup.existing(state_directory=state_directory, name=WorkloadName("work"))[0].path == group.path
        assert group.path.is_relative_to(group.mount_point)
        assert group.pids() == []
    finally:
        group.remove(5)
    group.remove(5)
    assert not group.exists
    assert not group.frozen
    assert not group.path.parent.exists()
    assert WorkloadCgroup.existing(state_directory=state_directory, name=WorkloadName("work")) == []


@pytest.mark.root
def test_what_processes_make_below_is_removed_too(state_directory: Path) -> None:
    group = WorkloadCgroup.create(state_directory=state_directory, name=WorkloadName("work"))
    (group.tasks / "a/b").mkdir(parents=True)
    group.remove(5)
    assert not group.path.parent.exists()


@pytest.mark.root
def test_a_launch_cut_off_in_between(state_directory: Path) -> None:
    group = WorkloadCgroup.create(state_directory=state_directory, name=WorkloadName("work"))
    for directory in (group.tasks, group.supervisor, group.path):
        directory.rmdir()
        (found,) = WorkloadCgroup.existing(state_directory=state_directory, name=WorkloadName("work"))
    found.remove(5)
    assert not group.path.parent.exists()


@pytest.mark.parametrize("path", ["/sys/fs/cgroup", "/sys/fs/cgroup/user.slice/work", "/sys/fs/cgroup/kybernate-1/.."])
def test_nobody_elses_cgroup_is_ever_taken(path: Path) -> None:
    with pytest.raises(ValueError, match="is no workload's cgroup"):
        WorkloadCgroup(Path(path))


TWICE = """
import subprocess, sys, time
from pathlib import Path
from kybernate.process.cgroups import WorkloadCgroup
from kybernate.process.launching import launch
from kybernate.process.specs import LaunchSpec
from kybernate.model.types import WorkloadName

state, second = Path(sys.argv[1]), Path(sys.argv[2])
second.mkdir()
subprocess.run(["mount", "-t", "cgroup2", "none", str(second)], check=True)
script = f"for root in $(awk '$3 == \\"cgroup2\\" {{print $2}}' /proc/mounts); do mkdir $root/out && echo out; done; echo through"
tree = launch(LaunchSpec(name="work", argv=("sh", "-c", script), run_directory=state / "workloads" / "work",
                         environment={"PATH": "/usr/bin:/bin"}))
try:
    print(len(WorkloadCgroup.existing(state_directory=state, name="work")))
    tree.wait(30)
    print((state / "workloads" / "work" / "output.log").read_text())
finally:
    tree.remove()
"""


@pytest.mark.root
def test_a_hierarchy_that_is_mounted_twice_is_one_and_no_workload_writes_there(state_directory: Path) -> None:
    """In a mount namespace of its own: others see no second mount."""
    (state_directory / "workloads").mkdir()
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", TWICE]
    done = subprocess.run(
        [*command, str(state_directory), str(state_directory / "second")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert lines[0] == "1"
    assert "through" in lines
    assert "out" not in lines
    (state_directory / "second").rmdir()
