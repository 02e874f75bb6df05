"""A workload with native memory besides its extents: `pieces.py NATIVE_MIB EXTENT_MIB`. It rewrites and compares all of it.

Words on stdout as of benchmarks/workload.py: `step N`, `MISMATCH ...`.
"""

from __future__ import annotations

import ctypes
import sys
import time
from itertools import count

from kybernate.benchmarks.driver import Driver

MIB = 1 << 20
PACE_S = 0.02


def main(native_mib: int, extent_mib: int) -> None:
    driver = Driver()
    pieces = [(driver.allocate(MIB), MIB) for _ in range(native_mib)]
    pieces.append((driver.allocate(extent_mib * MIB), extent_mib * MIB))
    for step in count(1):
        for number, (address, size) in enumerate(pieces):
            driver.call("cuMemsetD32_v2", address, step * 1000 + number, size // 4)
        for number, (address, size) in enumerate(pieces):
            found = ctypes.create_string_buffer(8)
            driver.call("cuMemcpyDtoH_v2", found, address + size - 8, 8)
            if found.raw != (step * 1000 + number).to_bytes(4, "little") * 2:
                sys.exit(print(f"MISMATCH in piece {number}, step {step}: {found.raw.hex()}", flush=True) or 1)
        print(f"step {step}", flush=True)
        time.sleep(PACE_S)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
