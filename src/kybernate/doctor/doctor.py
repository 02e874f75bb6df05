"""The doctor: what this machine can do, what it lacks, and the way to get it.

`examine` is pure: facts in, checks out, so that every ailment can be tested on a healthy machine. `checks` is that
over a fresh survey. A check that is not ok always has a remedy.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kybernate.doctor.host_facts import DriverFacts, Facts, survey
from kybernate.model.api import NodeView
from kybernate.model.quantities import format_seconds, format_size
from kybernate.model.types import GIB
from kybernate.process.criu import HOW_TO_GET

DRIVER_MINIMUM = 570
"""The first driver branch with the checkpoint calls in libcuda (CUDA 12.8)."""
CUDA_MINIMUM = 12080
KERNEL_MINIMUM = (5, 14)
"""cgroup.kill."""
FILES_MINIMUM = 4096
"""One descriptor an extent, two while it moves: 139 GiB in extents of 128 MiB are 1,112."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's report."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    """What to do; empty when ok."""
    needed: bool = True
    """False: only something named in `detail` is slower or missing without it."""


def checks() -> list[Check]:
    """Examine this machine."""
    return examine(survey())


def examine(facts: Facts) -> list[Check]:
    """Judge the facts of a machine. Pure."""
    return [
        *_gpu_checks(facts),
        _nvrtc(facts),
        _preload(facts),
        _criu(facts),
        _dumps_of_users(facts),
        _full_connections(facts),
        _root(facts),
        _kernel(facts),
        _cgroup(facts),
        _namespaces(facts),
        _huge_pages(facts),
        _memlock(facts),
        _files(facts),
        _memory(facts),
        _mps(facts),
        _mig(facts),
    ]


_RECENT_S = 600.0


def of_agent(node: NodeView, advice: Sequence[str] = (), *, now: float) -> list[Check]:
    """What a running agent says of itself, its tiers and its file. Pure."""
    gpus = "on a SIMULATED GPU: of this machine's it needs none" if node.simulated else f"GPUs: {len(node.gpus)}"
    return [
        Check("agent", ok=True, detail=f"{node.version} runs as process {node.pid}, {gpus}"),
        *_state_directory(node),
        _background(node, now),
        *_activator(node),
        *_without_library(node),
        *_tiers(node),
        *(
            Check("settings", ok=False, detail=line, remedy="change the file, then `kybernate reload`", needed=False)
            for line in advice
        ),
    ]


def _state_directory(node: NodeView) -> list[Check]:
    state = node.state
    if state is None:
        return []
    free = f"{format_size(state.free_bytes)} of {format_size(state.total_bytes)} free"
    return [
        Check(
            "agent's directory",
            ok=state.problem is None,
            detail=state.problem or f"{node.state_directory}, {free}",
            remedy="" if state.problem is None else f"make room: `du -xah {node.state_directory} | sort -h | tail`",
        )
    ]


def _background(node: NodeView, now: float) -> Check:
    down = [task for task in node.tasks if not task.up]
    bad = down or [task for task in node.tasks if task.failed > now - _RECENT_S]
    if not bad:
        return Check("background tasks", ok=True, detail="all run")
    said = "; ".join(
        f"{task.task} failed {task.failures} times, last {format_seconds(max(0.0, now - task.failed))} ago: {task.problem}"
        for task in bad[:3]
    )
    return Check(
        "background tasks",
        ok=False,
        detail=f"{len(down)} down; {said}",
        remedy="they are started again by themselves; `kybernate events` and the agent's log say more. Please report it",
        needed=bool(down),
    )


def _without_library(node: NodeView) -> list[Check]:
    if not node.without_library:
        return []
    return [
        Check(
            "library in workloads",
            ok=False,
            detail=f"{', '.join(node.without_library[:5])}: processes use the GPU without it, so only the driver's checkpoint "
            "moves their VRAM, slowly",
            remedy="let the command pass LD_PRELOAD on: no `env -i`, sudo or static launcher; `kybernate explain NAME`",
            needed=False,
        )
    ]


def _activator(node: NodeView) -> list[Check]:
    if not node.workers_missing:
        return []
    return [
        Check(
            "activator",
            ok=False,
            detail=f"to its processes {', '.join(map(str, node.workers_missing))} no client can connect",
            remedy=f"they are started again by themselves; {node.state_directory}/activator.log says why they end",
        )
    ]


def _tiers(node: NodeView) -> list[Check]:
    return [
        Check(
            f"tier {tier.tier}",
            ok=tier.problem is None,
            detail=tier.problem or f"{tier.state}, {tier.where}{', encrypted' if tier.encrypted else ''}",
            remedy=""
            if tier.problem is None
            else "mend that; it is tried again by itself. `agent.store` has its settings",
            needed=False,
        )
        for tier in node.tiers
    ]


_OF_A_REAL_GPU = frozenset({"driver library", "checkpoint calls", "GPU", "NVRTC", "MPS", "MIG"})


def beside_simulated(found: Iterable[Check]) -> list[Check]:
    """The same checks where the running agent's GPU is simulated: what only a real one needs is no failure then. Pure."""
    return [
        replace(check, needed=False, detail=f"{check.detail}; the running agent needs none, its GPU is simulated")
        if check.name in _OF_A_REAL_GPU and not check.ok
        else check
        for check in found
    ]


def _gpu_checks(facts: Facts) -> list[Check]:
    driver = facts.driver
    if driver is None:
        return [
            Check(
                "driver library",
                ok=False,
                detail="libcuda.so.1 does not load",
                remedy=(
                    "the kernel module is loaded, so install the driver's user-space libraries of the same release, or "
                    "run the container with `--gpus all`"
                    if facts.device_files
                    else f"install NVIDIA driver {DRIVER_MINIMUM} or newer; without a GPU use the simulated driver: "
                    "`kybernate up --simulated`"
                ),
            ),
            Check("GPU", ok=False, detail="none, since there is no driver library", remedy="see driver library"),
        ]
    version = f"CUDA {driver.cuda_version // 1000}.{driver.cuda_version % 1000 // 10}"
    release = driver.release or ("simulated" if driver.simulated else "unknown release")
    new_enough = driver.checkpoint_api and driver.cuda_version >= CUDA_MINIMUM
    return [
        Check("driver library", ok=True, detail=f"libcuda.so.1, {release}, {version}"),
        Check(
            "checkpoint calls",
            ok=new_enough,
            detail=f"the driver {'has' if new_enough else 'lacks'} cuCheckpointProcess*",
            remedy="" if new_enough else f"install NVIDIA driver {DRIVER_MINIMUM} or newer (CUDA 12.8)",
        ),
        _gpus(driver, facts),
    ]


def _gpus(driver: DriverFacts, facts: Facts) -> Check:
    if driver.gpus:
        return Check("GPU", ok=True, detail=", ".join(f"{g.name}, {_gib(g.total_bytes)}" for g in driver.gpus))
    why = driver.error or "the driver counts none"
    if driver.simulated:
        remedy = (
            "name the directory of a simulated GPU in KYBERNATE_SIMULATED_GPU, or take this driver off LD_LIBRARY_PATH"
        )
    elif facts.device_files:
        remedy = "see `dmesg | grep -i nvrm`; library and kernel module must be of one release, and CUDA_VISIBLE_DEVICES not empty"
    else:
        remedy = "load the kernel module (`modprobe nvidia`, `nvidia-modprobe`), or give this container the GPU"
    return Check("GPU", ok=False, detail=f"no usable GPU: {why}", remedy=remedy)


def _nvrtc(facts: Facts) -> Check:
    if facts.nvrtc:
        return Check("NVRTC", ok=True, detail=facts.nvrtc)
    if facts.driver and facts.driver.simulated:
        return Check("NVRTC", ok=True, detail="not needed by the simulated driver")
    return Check(
        "NVRTC",
        ok=False,
        detail="libnvrtc.so not found: it compiles the hash kernel that tells changed chunks from unchanged ones",
        remedy="install the CUDA toolkit's nvrtc package (cuda-nvrtc-13-0), or `pip install nvidia-cuda-nvrtc` beside kybernate",
    )


def _preload(facts: Facts) -> Check:
    if facts.preload:
        return Check("preload library", ok=True, detail=str(facts.preload))
    return Check(
        "preload library",
        ok=False,
        detail=facts.preload_problem,
        remedy="in a working tree run `make native`; otherwise install Kybernate again",
    )


def _criu(facts: Facts) -> Check:
    if facts.criu is None:
        return Check("CRIU", ok=False, detail=facts.criu_problem, remedy=HOW_TO_GET, needed=False)
    found = f"{facts.criu.version_text} at {facts.criu.path}"
    if facts.criu_check:
        command = f"{shlex.quote(str(facts.criu.path))} check --all -v4"
        return Check("CRIU", ok=False, detail=f"{found}: {facts.criu_check}", remedy=f"see `{command}`", needed=False)
    return Check("CRIU", ok=True, detail=found)


def _dumps_of_users(facts: Facts) -> Check:
    name = "snapshots of users"
    if facts.criu is None or facts.uid != 0 or facts.sys_resource:
        return Check(name, ok=True, detail="any user's" if facts.sys_resource else "none: see CRIU and root")
    return Check(
        name,
        ok=False,
        detail="without CAP_SYS_RESOURCE only workloads that run as root can be put on disk",
        remedy="in a container add `--cap-add SYS_RESOURCE` or `--privileged`, in a unit CapabilityBoundingSet=~",
        needed=False,
    )


def _full_connections(facts: Facts) -> Check:
    name = "snapshots of full connections"
    if facts.criu is None or facts.uid != 0 or facts.cgroup is None:
        return Check(name, ok=True, detail="none: see CRIU, root and cgroup v2")
    if facts.network_lock_problem is None:
        return Check(name, ok=True, detail="packets are held back meanwhile")
    return Check(
        name,
        ok=False,
        detail=f"a workload's packets can't be held back ({facts.network_lock_problem}): with unsent bytes it stays in memory",
        remedy="boot a kernel with CONFIG_CGROUP_BPF; in a container add `--privileged`",
        needed=False,
    )


def _root(facts: Facts) -> Check:
    if facts.uid == 0 and facts.sys_admin:
        return Check("root", ok=True, detail="uid 0 with CAP_SYS_ADMIN")
    lack = f"uid {facts.uid}" if facts.uid else "uid 0, but without CAP_SYS_ADMIN"
    return Check(
        "root",
        ok=False,
        detail=f"{lack}: no namespaces, cgroups, huge pages or snapshots to disk for workloads",
        remedy="run the agent as root (`sudo kybernate up`); in a container add `--privileged`",
        needed=False,
    )


def _kernel(facts: Facts) -> Check:
    ok = facts.kernel >= KERNEL_MINIMUM
    found = "Linux {}.{}".format(*facts.kernel)
    return Check(
        "kernel",
        ok,
        found,
        "" if ok else "boot Linux {}.{} or newer (cgroup.kill)".format(*KERNEL_MINIMUM),
        needed=False,
    )


def _cgroup(facts: Facts) -> Check:
    if facts.cgroup is None:
        remedy = "mount -t cgroup2 none /sys/fs/cgroup/unified (mkdir it first), or boot with systemd.unified_cgroup_hierarchy=1"
        return Check("cgroup v2", ok=False, detail="not mounted: paused workloads can't be frozen", remedy=remedy)
    if not facts.cgroup_writable:
        return Check(
            "cgroup v2",
            ok=False,
            detail=f"{facts.cgroup} is not writable for us: paused workloads are stopped by signals instead of frozen",
            remedy="run as root; in a container add `--privileged --cgroupns=host`",
            needed=False,
        )
    return Check("cgroup v2", ok=True, detail=str(facts.cgroup))


def _namespaces(facts: Facts) -> Check:
    if facts.namespaces_missing:
        missing = ", ".join(facts.namespaces_missing)
        return Check(
            "namespaces",
            ok=False,
            detail=f"the kernel lacks: {missing}",
            remedy="boot a kernel with CONFIG_NAMESPACES (PID_NS, IPC_NS, NET_NS)",
            needed=False,
        )
    return Check("namespaces", ok=True, detail="mount, pid, ipc, network")


def _huge_pages(facts: Facts) -> Check:
    if facts.huge_tmpfs in (None, "deny"):
        return Check(
            "huge pages on tmpfs",
            ok=False,
            detail=f"shmem_enabled is {facts.huge_tmpfs or 'missing'}: the pool takes longer to fill and to register",
            remedy=(
                "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled"
                if facts.huge_tmpfs
                else "boot a kernel with CONFIG_TRANSPARENT_HUGEPAGE"
            ),
            needed=False,
        )
    return Check("huge pages on tmpfs", ok=True, detail=f"by mount option (shmem_enabled: {facts.huge_tmpfs})")


def _memlock(facts: Facts) -> Check:
    if facts.memlock_limit is None or facts.ipc_lock:
        return Check("locked memory", ok=True, detail="unlimited")
    return Check(
        "locked memory",
        ok=False,
        detail=f"at most {_gib(facts.memlock_limit)}: a larger pool can't be pinned",
        remedy="`ulimit -l unlimited`, LimitMEMLOCK=infinity in a unit, or `--ulimit memlock=-1` for a container",
        needed=False,
    )


def _files(facts: Facts) -> Check:
    limit = facts.file_limit_hard
    if limit is None or limit >= FILES_MINIMUM or facts.sys_resource:
        return Check("open files", ok=True, detail="unlimited" if limit is None else f"at most {limit}")
    return Check(
        "open files",
        ok=False,
        detail=f"at most {limit}: every extent takes one descriptor",
        remedy=f"`ulimit -Hn {FILES_MINIMUM}` or more, LimitNOFILE= in a unit",
    )


def _memory(facts: Facts) -> Check:
    vram = max((gpu.total_bytes for gpu in facts.driver.gpus), default=0) if facts.driver else 0
    have = f"{_gib(facts.memory_available)} of {_gib(facts.memory_total)} available"
    # The pool is half of the RAM by default; below that the machine hardly pauses one full GPU's half.
    if facts.memory_available < vram // 2:
        return Check(
            "host memory",
            ok=False,
            detail=f"{have}, a GPU has {_gib(vram)}: what can be paused at once is limited by the pool in host memory",
            remedy="add RAM or end what uses it, or set agent.pool.size in kybernate.yaml to what can be spared",
            needed=False,
        )
    return Check("host memory", ok=True, detail=have)


def _mps(facts: Facts) -> Check:
    if facts.mps is None:
        return Check("MPS", ok=True, detail="off")
    return Check(
        "MPS",
        ok=False,
        detail=f"on ({facts.mps}): processes behind it can't be checkpointed",
        remedy="`echo quit | nvidia-cuda-mps-control` and unset CUDA_MPS_PIPE_DIRECTORY",
    )


def _mig(facts: Facts) -> Check:
    sliced = [gpu.name for gpu in facts.driver.gpus if gpu.mig] if facts.driver else []
    if not sliced:
        return Check("MIG", ok=True, detail="off")
    return Check(
        "MIG",
        ok=False,
        detail=f"{', '.join(sliced)}: the driver can't checkpoint processes on a slice",
        remedy="`nvidia-smi -mig 0` as root, with nothing running on that GPU",
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
