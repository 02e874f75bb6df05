"""A tree of two CUDA processes; a step is counted when both made one."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from program import Loop, mismatch, say

CHILD = "child"


def load(loop: Loop, seed: int) -> None:
    from torch_common import MIB, Arrays, require_cuda, working_set_mib

    require_cuda()
    count = 4
    arrays = Arrays(count=count, words=max(1024, working_set_mib(512) * MIB // 4 // count), seed=seed)
    for step in loop:
        arrays.advance(step % count)
        arrays.check(step % count, f"process {os.getpid()}, step {step}")
        arrays.check((step + 1) % count, f"process {os.getpid()}, step {step}, untouched array")
    for which in range(count):
        arrays.check(which, f"process {os.getpid()}, at the end")


class Child:
    """The other process and what it said last."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, __file__, CHILD], stdout=subprocess.PIPE, text=True)
        self.steps = 0
        self.last = ""
        self._listener = threading.Thread(target=self._listen, name="listener", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.last = line.strip()
            if self.last.startswith("step "):
                self.steps = int(self.last.split()[1])
            else:
                say(f"child: {self.last}")

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=120)
        self._listener.join(timeout=10)
        if status != 0 or not self.last.startswith("exact "):
            mismatch(f"the child ended with status {status}: {self.last}")


class SlowerOfTwo(Loop):
    """Reports the slower of the two processes, and notices when the other one ended on its own."""

    def __init__(self, *, theirs: Callable[[], int], ended: Callable[[], bool]) -> None:
        super().__init__()
        self._theirs = theirs
        self._ended = ended

    def report(self, steps: int | None = None) -> None:
        # SIGTERM may come to the whole tree at once: then the child may be gone a moment before our own flag is seen.
        if self._ended() and not self.stopped:
            self.stopped = True
        super().report(min(self.steps, self._theirs()))


if __name__ == "__main__":
    if sys.argv[1:] == [CHILD]:
        own = Loop()
        load(own, seed=100)
        own.finish()
    else:
        child = Child()
        slower = SlowerOfTwo(theirs=lambda: child.steps, ended=lambda: child.process.poll() is not None)
        load(slower, seed=0)
        child.end()
        slower.steps = min(slower.steps, child.steps)
        slower.finish()
