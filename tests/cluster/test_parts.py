"""The parts of a test cluster that can be tested without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from tests.cluster.harness import Cluster, ClusterError, binaries, cgroups, images, keeper, network
from tests.cluster.harness.certificates import Authority
from tests.cluster.harness.errors import Missing
from tests.cluster.harness.network import FIRST, LAST, Network

Eventually = Callable[..., Any]


def test_an_image_is_the_same_each_time(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    for name in ("a.tar", "b.tar"):
        images.write(tmp_path / name, name="kybernate.invalid/x:1", program=program, entrypoint=["/program"])
        program.touch()  # its times are no part of the image
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_all_blobs_an_image_names_are_in_it(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    images.write(tmp_path / "a.tar", name="kybernate.invalid/x:1", program=program, entrypoint=["/program"])
    with tarfile.open(tmp_path / "a.tar") as tar:

        def read(digest: str) -> Any:
            file = tar.extractfile(f"blobs/sha256/{digest.removeprefix('sha256:')}")
            assert file is not None
            return file.read()

        index = tar.extractfile("index.json")
        assert index is not None
        manifest = json.loads(read(json.loads(index.read())["manifests"][0]["digest"]))
        configuration = json.loads(read(manifest["config"]["digest"]))
        assert configuration["rootfs"]["diff_ids"] == [manifest["layers"][0]["digest"]]
        assert len(read(manifest["layers"][0]["digest"])) == manifest["layers"][0]["size"]


def test_certificates_carry_user_group_and_address(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue("a", user="u", groups=["g"], addresses=["127.0.0.1"])
    read = x509.load_pem_x509_certificate(certificate.read_bytes())
    assert read.subject.rfc4514_string() == "CN=u,O=g"
    assert (
        b"\x7f\x00\x00\x01" in read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.public_bytes()
    )
    assert key.stat().st_mode & 0o077 == 0


def test_names_of_interfaces_fit() -> None:
    for number in (FIRST, LAST):
        assert len(Network(number).host_end(9)) <= 15


def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "BUILT", Path("/nonexistent"))
    monkeypatch.setenv("KUBEBUILDER_ASSETS", "/nonexistent")
    monkeypatch.setenv("PATH", "/nonexistent")
    binaries.locate.cache_clear()
    try:
        with pytest.raises(Missing, match="make cluster-binaries") as caught:
            binaries.find(binaries.NODE)
        assert "\n" not in str(caught.value)
    finally:
        binaries.locate.cache_clear()


def test_programs_of_another_version_are_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for version, used in (("v1.20.2", False), (binaries.pinned("kubernetes", "k8s.io/kubernetes"), True)):
        program = tmp_path / "kube-apiserver"
        program.write_text(f"#!/bin/sh\necho Kubernetes {version}\n")
        program.chmod(0o755)
        monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
        assert (binaries.elsewhere("kube-apiserver") == program) is used


def test_programs_are_found_wherever_they_are_called_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "assets" / "probe"
    program.parent.mkdir()
    program.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", "assets")
    assert binaries.elsewhere("probe") == program


MOUNTS = {
    "version 1 with an empty version 2": """
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
""",
    "version 2": """
30 24 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
31 24 0:27 / /sys/fs/pstore rw,relatime shared:5 - pstore pstore rw
""",
}


@pytest.mark.parametrize(
    ("host", "roots"),
    [("version 1 with an empty version 2", ["memory", "unified"]), ("version 2", [""])],
)
def test_all_hierarchies_are_found(host: str, roots: list[str]) -> None:
    assert cgroups.mounted(MOUNTS[host].strip()) == [Path("/sys/fs/cgroup") / root for root in roots]


@pytest.mark.parametrize(
    ("available", "handed", "missing"),
    [
        ("cpuset cpu io memory hugetlb pids rdma misc\n", "\n", ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"]),
        ("cpuset cpu io memory pids\n", "cpu io memory pids\n", ["cpuset"]),
        ("cpu memory pids\n", "cpu memory pids\n", []),
        ("hugetlb\n", "\n", []),
    ],
    ids=["fresh kernel", "a usual host", "nothing to do", "the rest is on version 1"],
)
def test_a_version_2_cgroup_hands_down_what_a_kubelet_wants(available: str, handed: str, missing: list[str]) -> None:
    assert cgroups.not_handed_down(available, handed) == missing


@pytest.mark.root
def test_a_number_whose_cgroup_is_there_is_not_taken() -> None:
    # Somebody in another network namespace of this machine has it.
    name = f"kybkube-test-{uuid.uuid4().hex[:8]}"
    group = cgroups.hierarchies()[0] / name
    group.mkdir()
    try:
        assert name in cgroups.names()
    finally:
        group.rmdir()
    everything = {Network(number).bridge for number in range(FIRST, LAST + 1)}
    with pytest.raises(ClusterError, match="no free network"):
        network.make("test", avoid=everything)


@pytest.mark.parametrize("record", ["", "[]", '{"network": null}'])
def test_a_damaged_record_is_said_in_one_line(tmp_path: Path, record: str) -> None:
    (tmp_path / "cluster.json").write_text(record)
    with pytest.raises(ClusterError, match=r"^.*cluster\.json can't be read[^\n]*$"):
        Cluster.load(tmp_path)


@pytest.mark.parametrize("end", ["leash", "signal", "kill"])
def test_a_keeper_takes_its_programs_along(tmp_path: Path, eventually: Eventually, end: str) -> None:
    leash = tmp_path / "leash"
    os.mkfifo(leash)
    holder = os.open(leash, os.O_RDWR)
    group = tmp_path / "group" / "inner"
    group.mkdir(parents=True)
    program = {"name": "sleeper", "argv": ["sleep", "1000"], "log": str(tmp_path / "log"), "restart": True}
    specification = {
        "directory": str(tmp_path),
        "leash": str(leash),
        "programs": [program],
        "finally": [["touch", str(tmp_path / "done")]],
        "cgroups": [str(group.parent)],
    }
    (tmp_path / "spec.json").write_text(json.dumps(specification))
    running = subprocess.Popen([sys.executable, "-I", keeper.__file__, str(tmp_path / "spec.json")])
    try:
        pid_file = tmp_path / "sleeper.pid"
        pid = int(eventually(lambda: pid_file.exists() and pid_file.read_text()))
        if end == "leash":
            os.close(holder)
        else:
            running.send_signal(signal.SIGTERM if end == "signal" else signal.SIGKILL)
        running.wait(timeout=10)
    finally:
        running.kill()
    eventually(lambda: not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text())
    if end != "kill":
        assert (tmp_path / "done").exists()
        assert not group.parent.exists()
    if end != "leash":
        os.close(holder)


def test_a_keeper_whose_log_is_full_ends_all_the_same(tmp_path: Path) -> None:
    program = {"name": "short", "argv": ["false"], "log": str(tmp_path / "log")}
    (tmp_path / "spec.json").write_text(json.dumps({"directory": str(tmp_path), "programs": [program]}))
    with Path("/dev/full").open("ab") as full:
        done = subprocess.run(
            [sys.executable, "-I", keeper.__file__, str(tmp_path / "spec.json")], stderr=full, timeout=20, check=False
        )
    assert done.returncode == 1


def test_a_program_that_ends_is_started_again(tmp_path: Path, eventually: Eventually) -> None:
    program = {
        "name": "short",
        "argv": ["sh", "-c", "echo once; exit 3"],
        "log": str(tmp_path / "log"),
        "restart": True,
    }
    (tmp_path / "spec.json").write_text(json.dumps({"directory": str(tmp_path), "programs": [program]}))
    done = subprocess.run(
        [sys.executable, "-I", keeper.__file__, str(tmp_path / "spec.json")],
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert (tmp_path / "log").read_text() == "once\n" * keeper.TRIES
