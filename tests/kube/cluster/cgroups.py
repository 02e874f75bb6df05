"""A cluster's own cgroup in every hierarchy of this machine, version 1, 2 or both."""

from __future__ import annotations

from pathlib import Path

from tests.kube.cluster.errors import ClusterError

NEEDED_ON_V1 = ("cpu", "cpuacct", "cpuset", "memory", "pids")


def hierarchies() -> list[Path]:
    """Mount points of all cgroup hierarchies, unified ones too."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] in ("cgroup", "cgroup2"):
            found.append(Path(before.split()[4]))
    return found


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


def _hand_down(parent: Path, child: Path) -> None:
    """Give a new cgroup what it doesn't inherit: cpusets on version 1, controllers on version 2."""
    if (parent / "cgroup.subtree_control").exists():
        missing = set((parent / "cgroup.controllers").read_text().split()) - set(
            (parent / "cgroup.subtree_control").read_text().split()
        )
        if missing:
            (parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(missing)))
    for file in ("cpuset.cpus", "cpuset.mems"):
        if (child / "cgroup.clone_children").exists() and (child / file).exists():
            (child / file).write_text((parent / file).read_text())
