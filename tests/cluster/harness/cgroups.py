"""A cluster's own cgroup in every hierarchy of this machine, version 1, 2 or both."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.harness.errors import ClusterError

NEEDED_ON_V1 = ("cpu", "cpuacct", "cpuset", "memory", "pids")
WANTED_ON_V2 = ("cpu", "cpuset", "hugetlb", "io", "memory", "pids")
"""Handed down from the root on, which stays so: most systems do it themselves."""


def hierarchies() -> list[Path]:
    """Mount points of all cgroup hierarchies, unified ones too."""
    return mounted(Path("/proc/self/mountinfo").read_text())


def mounted(mountinfo: str) -> list[Path]:
    """Where the mounts of a /proc/PID/mountinfo have cgroups."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] in ("cgroup", "cgroup2"):
            found.append(Path(before.split()[4]))
    return found


def names() -> set[str]:
    """The cgroups there are below the roots. A cluster in another network namespace of this machine has one, but no bridge here."""
    return {path.name for root in hierarchies() for path in root.iterdir() if path.is_dir()}


def make(name: str, children: list[str]) -> list[str]:
    """Make NAME/CHILD in every hierarchy: a kubelet wants its root to be there. Returns all NAME directories.

    Raises:
        ClusterError: there is no hierarchy a kubelet can use.
    """
    roots = hierarchies()
    if not any(_is_unified(root) and "memory" in (root / "cgroup.controllers").read_text().split() for root in roots):
        present = {controller for root in roots for controller in root.name.split(",")}
        if missing := [controller for controller in NEEDED_ON_V1 if controller not in present]:
            raise ClusterError(
                f"a kubelet needs the cgroup controllers {', '.join(missing)}, which aren't mounted here"
            )
    made = []
    for root in roots:
        top = root / name
        top.mkdir(exist_ok=True)
        _hand_down(root, top)
        for child in children:
            (top / child).mkdir(exist_ok=True)
            _hand_down(top, top / child)
        made.append(str(top))
    return made


def _is_unified(root: Path) -> bool:
    return (root / "cgroup.controllers").exists()


def not_handed_down(available: str, handed: str) -> list[str]:
    """Controllers a kubelet wants from a version 2 cgroup that has `available` and so far hands down `handed`.

    None where memory is on version 1: there the kubelet uses that for everything.
    """
    words = available.split()
    if "memory" not in words:
        return []
    return [name for name in WANTED_ON_V2 if name in words and name not in handed.split()]


def _hand_down(parent: Path, child: Path) -> None:
    """Give a new cgroup what it doesn't inherit: cpusets on version 1, controllers on version 2."""
    handed = parent / "cgroup.subtree_control"
    if handed.exists() and (
        missing := not_handed_down((parent / "cgroup.controllers").read_text(), handed.read_text())
    ):
        try:
            handed.write_text(" ".join(f"+{name}" for name in missing))
        except OSError as e:
            raise ClusterError(
                f"the cgroup {parent} can't hand its controllers down ({e.strerror}): "
                "where it is the root of a container, start that with the host's cgroup namespace"
            ) from e
    for file in ("cpuset.cpus", "cpuset.mems"):
        if (child / "cgroup.clone_children").exists() and (child / file).exists():
            (child / file).write_text((parent / file).read_text())
