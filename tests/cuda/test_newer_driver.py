"""A driver newer than the bindings: a status that they have no name for is our own error, and says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DRIVER = """
static int newer(void) { return 4711; }
int cuInit(unsigned flags) { (void)flags; return 4711; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuGetProcAddress(const char *name, void **function, int version, unsigned long flags)
{ (void)name, (void)version, (void)flags; *function = (void *)newer; return 0; }
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long flags, int *found)
{ if (found) *found = 0; return cuGetProcAddress(name, function, version, flags); }
"""
PROGRAM = """
from kybernate.cuda.driver import CudaError, call
try:
    call("cuInit", 0)
except CudaError as e:
    print(e.name, "|", e, "|", e.code)
"""


def test_an_unknown_status_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "driver.c")], check=True)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    name, words, code = done.stdout.strip().split(" | ")
    assert (name, code) == ("CUresult 4711", "cuda")
    assert "cuInit failed with CUresult 4711" in words
    assert "newer than the installed cuda-bindings" in words
