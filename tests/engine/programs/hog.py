"""Takes all VRAM there is, without any agent; says `full` and keeps it until its stdin is closed."""

from __future__ import annotations

import sys

from kybernate.benchmarks.driver import Driver, DriverError

MIB = 1 << 20

if __name__ == "__main__":
    driver = Driver()
    size = 32 * MIB
    while size >= MIB:
        try:
            driver.allocate(size)
        except DriverError:
            size //= 2
    print("full", flush=True)
    sys.stdin.read()
