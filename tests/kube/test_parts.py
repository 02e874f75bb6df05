"""The parts of a test cluster that can be tested without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from tests.kube.cluster import binaries, images, keeper
from tests.kube.cluster.certificates import Authority
from tests.kube.cluster.errors import Missing
from tests.kube.cluster.network import FIRST, LAST, Network

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
