"""The kubelet's gRPC interfaces as Python modules, from the .proto files of the pinned Kubernetes."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.cluster.harness.binaries import find


def load(name: str, directory: Path) -> tuple[Any, Any]:
    """Messages and services of `name`.proto; what is generated goes to `directory`, which must be this process's own.

    One interface a process: some of them share names that protobuf wants only once.
    """
    (interface,) = find([f"{name}.proto"]).values()
    done = subprocess.run(
        [
            *[sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={interface.parent}"],
            *[f"--python_out={directory}", f"--grpc_python_out={directory}", f"{name}.proto"],
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name}.proto: {done.stderr.strip()}")
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    return importlib.import_module(f"{name}_pb2"), importlib.import_module(f"{name}_pb2_grpc")
