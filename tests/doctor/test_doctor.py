"""Every ailment of a machine, on a healthy one: facts in, checks out. And one survey of this very machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kybernate.doctor.doctor import Check, beside_simulated, checks, examine
from kybernate.doctor.host_facts import DriverFacts, Facts, GpuFacts
from kybernate.model.types import GIB
from kybernate.process.criu import Criu

H200 = GpuFacts("NVIDIA H200", 139 * GIB, mig=False)
DRIVER = DriverFacts("580.159.04", 13000, checkpoint_api=True, error=None, gpus=(H200,), simulated=False)
HEALTHY = Facts(
    driver=DRIVER,
    nvrtc="libnvrtc.so.13",
    preload=Path("/opt/kybernate/libkybernate-preload.so"),
    preload_problem="",
    criu=Criu(Path("/usr/sbin/criu"), (4, 2, 1)),
    criu_problem="",
    criu_check=None,
    uid=0,
    sys_admin=True,
    ipc_lock=True,
    sys_resource=True,
    kernel=(6, 8),
    cgroup=Path("/sys/fs/cgroup"),
    cgroup_writable=True,
    namespaces_missing=(),
    network_lock_problem=None,
    huge_tmpfs="never",
    memlock_limit=8 * GIB,
    file_limit_hard=20000,
    memory_total=256 * GIB,
    memory_available=200 * GIB,
    mps=None,
    device_files=True,
)


def failing(facts: Facts) -> dict[str, Check]:
    return {check.name: check for check in examine(facts) if not check.ok}


def test_a_healthy_machine_has_nothing_to_mend() -> None:
    assert failing(HEALTHY) == {}


@pytest.mark.parametrize(
    ("change", "name", "remedy"),
    [
        pytest.param(
            {"driver": None, "device_files": False}, "driver library", "install NVIDIA driver 570", id="no driver"
        ),
        pytest.param({"driver": None}, "driver library", "--gpus all", id="container without the libraries"),
        pytest.param(
            {"driver": replace(DRIVER, cuda_version=12040)}, "checkpoint calls", "driver 570", id="old driver"
        ),
        pytest.param(
            {"driver": replace(DRIVER, checkpoint_api=False)}, "checkpoint calls", "driver 570", id="no calls"
        ),
        pytest.param(
            {"driver": replace(DRIVER, gpus=(), error="CUDA_ERROR_NO_DEVICE"), "device_files": False},
            "GPU",
            "modprobe nvidia",
            id="library but no GPU",
        ),
        pytest.param(
            {"driver": replace(DRIVER, gpus=(), error="CUDA_ERROR_NO_DEVICE", simulated=True)},
            "GPU",
            "KYBERNATE_SIMULATED_GPU",
            id="simulated driver without a GPU",
        ),
        pytest.param({"nvrtc": None}, "NVRTC", "cuda-nvrtc", id="no nvrtc"),
        pytest.param(
            {"preload": None, "preload_problem": "it is gone"}, "preload library", "make native", id="no preload"
        ),
        pytest.param({"criu": None, "criu_problem": "none found"}, "CRIU", "make setup", id="no criu"),
        pytest.param({"criu_check": "no ptrace"}, "CRIU", "check --all", id="criu discontent"),
        pytest.param({"sys_resource": False}, "snapshots of users", "SYS_RESOURCE", id="no right to read limits"),
        pytest.param(
            {"network_lock_problem": "Operation not permitted"},
            "snapshots of full connections",
            "CONFIG_CGROUP_BPF",
            id="packets can't be held back",
        ),
        pytest.param({"uid": 1000, "sys_admin": False}, "root", "sudo kybernate up", id="not root"),
        pytest.param({"sys_admin": False}, "root", "--privileged", id="root in a container"),
        pytest.param({"kernel": (5, 10)}, "kernel", "5.14", id="old kernel"),
        pytest.param({"cgroup": None}, "cgroup v2", "mount -t cgroup2", id="no cgroup v2"),
        pytest.param({"cgroup_writable": False}, "cgroup v2", "run as root", id="cgroup read-only"),
        pytest.param({"namespaces_missing": ("net",)}, "namespaces", "CONFIG_NAMESPACES", id="no network namespace"),
        pytest.param({"huge_tmpfs": "deny"}, "huge pages on tmpfs", "shmem_enabled", id="huge pages denied"),
        pytest.param({"huge_tmpfs": None}, "huge pages on tmpfs", "CONFIG_", id="huge pages not built"),
        pytest.param({"ipc_lock": False}, "locked memory", "ulimit -l", id="memlock"),
        pytest.param({"file_limit_hard": 1024, "sys_resource": False}, "open files", "ulimit -Hn", id="nofile"),
        pytest.param({"memory_available": 16 * GIB}, "host memory", "agent.pool.size", id="little RAM"),
        pytest.param({"mps": "process 7 nvidia-cuda-mps"}, "MPS", "quit", id="MPS"),
        pytest.param(
            {"driver": replace(DRIVER, gpus=(replace(H200, name="NVIDIA H200 MIG 1g.18gb", mig=True),))},
            "MIG",
            "nvidia-smi -mig 0",
            id="MIG",
        ),
    ],
)
def test_each_missing_thing_is_named_with_the_way_to_get_it(change: dict[str, Any], name: str, remedy: str) -> None:
    check = failing(replace(HEALTHY, **change))[name]
    assert check.detail
    assert remedy in check.remedy


def test_the_simulated_driver_needs_no_compiler_and_says_simulated() -> None:
    gpu = GpuFacts("Kybernate simulated GPU", GIB, mig=False)
    simulated = DriverFacts(None, 13000, checkpoint_api=True, error=None, gpus=(gpu,), simulated=True)
    report = {check.name: check for check in examine(replace(HEALTHY, driver=simulated, nvrtc=None))}
    assert report["NVRTC"].ok
    assert "simulated" in report["driver library"].detail


def test_beside_a_simulated_agent_only_a_real_gpu_may_be_missing() -> None:
    lacking = replace(HEALTHY, driver=None, nvrtc=None, cgroup=None)
    report = beside_simulated(examine(lacking))
    assert {check.name for check in report if not check.ok and check.needed} == {"cgroup v2"}
    absent = {check.name: check.detail for check in report if not check.ok and not check.needed}
    assert absent.keys() == {"driver library", "GPU", "NVRTC"}
    assert all("its GPU is simulated" in detail for detail in absent.values())


def test_this_machine_can_be_surveyed() -> None:
    report = checks()
    assert len({check.name for check in report}) == len(report)
    assert [check.name for check in report if check.ok == bool(check.remedy)] == [], "a remedy, if and only if not ok"
