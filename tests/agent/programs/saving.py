"""A program that needs VRAM for what it does at its end: `saving.py BYTES`."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from kybernate.benchmarks.driver import Driver
from kybernate.benchmarks.workload import say


def main() -> None:
    driver = Driver()
    driver.allocate(1 << 21)

    def save(_number: int, _frame: FrameType | None) -> None:
        say("saving")
        driver.allocate(int(sys.argv[1]))
        say("saved")
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, save)
    say("ready")
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
