"""In which words a host is told that it can't restore a snapshot."""

from __future__ import annotations

from pathlib import Path

import pytest
from blake3 import blake3

from kybernate.store import FileNeed, GpuNeed, Host, Needs, differences

pytestmark = pytest.mark.unit

H200 = GpuNeed(name="NVIDIA H200", memory_bytes=139 << 30)
HOST = Host(
    gpus=(H200,), driver="580.159.04", cpu_features=("avx2", "avx512f", "fma"), kernel="6.18.44-fc", criu="4.2.1"
)


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        (Needs(), []),
        (Needs(gpus=(H200,), driver="580.159.04", cpu_features=("avx2",), kernel="6.18.0", criu="4.1"), []),
        (Needs(gpus=(GpuNeed(name="NVIDIA L4"),)), ["it needs 1 x NVIDIA L4; this host has 1 x NVIDIA H200"]),
        (Needs(gpus=(H200, H200)), ["it needs 2 x NVIDIA H200; this host has 1 x NVIDIA H200"]),
        (
            Needs(gpus=(GpuNeed(name="NVIDIA H200", memory_bytes=141 << 30),)),
            ["it needs a NVIDIA H200 with 141.0 GiB; this host's have 139.0 GiB"],
        ),
        (Needs(driver="575.1"), ["it was taken under driver 575.1; this host has 580.159.04"]),
        (Needs(cpu_features=("avx2", "amx_tile")), ["this host's processor lacks amx_tile"]),
        (Needs(kernel="6.19.1"), ["it needs Linux 6.19.1 or newer; this host has 6.18.44-fc"]),
        (Needs(kernel="6.18.44-other"), []),
        (Needs(criu="4.10"), ["it needs CRIU 4.10 or newer; this host has 4.2.1"]),
        (
            Needs(files=(FileNeed(path="/nowhere/x", size_bytes=1),)),
            ["/nowhere/x can't be read here: No such file or directory"],
        ),
    ],
)
def test_what_differs_is_said(needs: Needs, said: list[str]) -> None:
    assert differences(needs, HOST) == said


def test_a_host_with_nothing() -> None:
    needs = Needs(gpus=(H200,), driver="1", kernel="6.1", criu="4.0")
    assert differences(needs, Host()) == [
        "it needs 1 x NVIDIA H200; this host has none",
        "it was taken under driver 1; this host has no driver",
        "it needs Linux 6.1 or newer; this host has no kernel",
        "it needs CRIU 4.0 or newer; this host has no CRIU",
    ]


def test_files_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(b"content")

    def digest(path: Path) -> str:
        return blake3(path.read_bytes()).hexdigest()

    need = FileNeed(path=str(path), size_bytes=7, digest=digest(path))
    assert differences(Needs(files=(need,)), Host(), digest_of=digest) == []
    path.write_bytes(b"CONTENT")
    assert differences(Needs(files=(need,)), Host()) == [], "without hashes only sizes are compared"
    assert differences(Needs(files=(need,)), Host(), digest_of=digest) == [f"{path} has another content here"]
    path.write_bytes(b"longer content")
    assert differences(Needs(files=(need,)), Host(), digest_of=digest) == [f"{path} has 14 bytes here, and had 7"]
