"""Threads go on where they stood, with their own data, names and signal masks."""

import signal
import threading

from station import dumped

local = threading.local()
go = threading.Event()
results = []


def work(number: int) -> None:
    local.number = number
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1] if number % 2 else [])
    go.wait()
    blocked = signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    results.append((local.number, blocked, threading.get_native_id()))


threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
ids = [thread.native_id for thread in threads]
dumped()
go.set()
for thread in threads:
    thread.join()
assert sorted(results) == [(number, bool(number % 2), ids[number]) for number in range(8)], results
