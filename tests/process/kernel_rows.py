"""What the kernel knows of a program, one row each: how to set it, how to look at it, and what becomes of it in a restore."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Fate(enum.Enum):
    KEPT = "kept"
    """By CRIU."""
    SET_AGAIN = "set again"
    REFUSED = "refused"
    """Unless changes are allowed."""
    NOTED = "noted"
    """In the report."""


@dataclass(frozen=True)
class Row:
    name: str
    fate: Fate
    setup: str
    """A program; what it makes is there for `look`. With PermissionError and the like the row is left out."""
    look: str
    """An expression, the same before and after."""
    words: str = ""
    """How it is named."""

    @property
    def id(self) -> str:
        return self.name.lower().replace(" ", "-")


HEAD = """
import ctypes, fcntl, json, mmap, os, resource, select, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.syscall.restype = ctypes.c_long
control = os.environ["KYBERNATE_RUN_DIRECTORY"] + "/control"

def call(number, *arguments):
    longs = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = libc.syscall(ctypes.c_long(number), *longs)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def prctl(*arguments):
    return call(157, *arguments, *[0] * (5 - len(arguments)))

def memory(size):
    return libc.mmap(None, size, 3, 0x22, -1, 0)

def area(address, name):
    inside = False
    for line in open("/proc/self/smaps"):
        head = line.split()[0]
        if not head.endswith(":"):
            first, last = (int(number, 16) for number in head.split("-"))
            inside = first <= address < last
        elif inside and head == name + ":":
            return line.split()[1:]

def flags(address):
    return [flag for flag in area(address, "VmFlags") if flag not in ("sd", "nr")]

def status(name):
    return next(line for line in open("/proc/self/status") if line.startswith(name + ":"))

def fdinfo(number, *names):
    return [line for line in open(f"/proc/self/fdinfo/{number}") if line.startswith(names)]

def attributes(thread):
    buffer = ctypes.create_string_buffer(48)
    call(315, thread, buffer, 48, 0)
    return struct.unpack("IIQiIQQQ", buffer.raw)

def policy():
    mode, nodes = ctypes.c_int(), (ctypes.c_ulong * 16)()
    call(239, ctypes.byref(mode), nodes, 1024, None, 0)
    return mode.value, nodes[0]

def left(get, timer):
    buffer = ctypes.create_string_buffer(32)
    get(timer, buffer)
    return struct.unpack("qqqq", buffer.raw)[2] + struct.unpack("qqqq", buffer.raw)[3] / 1e9

asked, answers, turn = [], [], threading.Condition()

def thread(setup, look=None):
    made = []
    def run():
        try:
            setup()
            made.append(threading.get_native_id())
        except BaseException as e:
            made.append(e)
        with turn:
            while True:
                turn.wait_for(lambda: asked)
                answers.append(look())
                asked.clear()
                turn.notify_all()
    threading.Thread(target=run, daemon=True).start()
    while not made:
        time.sleep(0.01)
    if isinstance(made[0], BaseException):
        raise made[0]
    return made[0]

def ask():
    with turn:
        asked.append(True)
        turn.notify_all()
        turn.wait_for(lambda: answers)
        return answers.pop()

def listener():
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    made.listen(7)
    return made

def connection():
    global listening, client
    listening = listener()
    client = socket.create_connection(listening.getsockname())
    return listening.accept()[0]

def datagram():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", 0))
    return made

def with_option(made, level, number, value):
    made.setsockopt(level, number, value)
    return made
"""
TAIL = """
try:
    exec(sys.argv[1])
    before = eval(sys.argv[2])
except OSError as e:
    print("left out:", e, flush=True)
    os._exit(77)
print("ready", flush=True)
while not os.path.exists(control + "/go"):
    time.sleep(0.01)
print(json.dumps([before, eval(sys.argv[2])], default=repr), flush=True)
"""

_MADVICE = {
    "MADV_DONTFORK": 10,
    "MADV_MERGEABLE": 12,
    "MADV_HUGEPAGE": 14,
    "MADV_NOHUGEPAGE": 15,
    "MADV_DONTDUMP": 16,
    "MADV_WIPEONFORK": 18,
    "MADV_SEQUENTIAL": 2,
}
_OPTIONS = (
    ("connection", Fate.KEPT, "TCP_NODELAY", 6, 1, 1),
    ("connection", Fate.KEPT, "TCP_KEEPIDLE", 6, 4, 77),
    ("connection", Fate.KEPT, "SO_PRIORITY", 1, 12, 4),
    ("connection", Fate.KEPT, "SO_RCVLOWAT", 1, 18, 99),
    ("connection", Fate.KEPT, "SO_SNDBUF", 1, 7, 100_000),
    ("connection", Fate.KEPT, "SO_OOBINLINE", 1, 10, 1),
    ("connection", Fate.KEPT, "IP_TOS", 0, 1, 8),
    ("connection", Fate.SET_AGAIN, "TCP_USER_TIMEOUT", 6, 18, 12_345),
    ("connection", Fate.SET_AGAIN, "TCP_NOTSENT_LOWAT", 6, 25, 54_321),
    ("connection", Fate.SET_AGAIN, "TCP_CONGESTION", 6, 13, b"reno"),
    ("connection", Fate.SET_AGAIN, "TCP_SYNCNT", 6, 7, 3),
    ("connection", Fate.SET_AGAIN, "TCP_LINGER2", 6, 8, 7),
    ("connection", Fate.SET_AGAIN, "TCP_INQ", 6, 36, 1),
    ("connection", Fate.SET_AGAIN, "TCP_TX_DELAY", 6, 37, 5),
    ("connection", Fate.SET_AGAIN, "SO_BUSY_POLL", 1, 46, 50),
    ("connection", Fate.SET_AGAIN, "SO_MAX_PACING_RATE", 1, 47, 123_456),
    ("connection", Fate.SET_AGAIN, "SO_TIMESTAMP", 1, 29, 1),
    ("connection", Fate.SET_AGAIN, "SO_ZEROCOPY", 1, 60, 1),
    ("connection", Fate.SET_AGAIN, "IP_MTU_DISCOVER", 0, 10, 3),
    ("connection", Fate.SET_AGAIN, "IP_MINTTL", 0, 21, 5),
    ("listener", Fate.KEPT, "TCP_KEEPINTVL", 6, 5, 77),
    ("listener", Fate.SET_AGAIN, "TCP_DEFER_ACCEPT", 6, 9, 17),
    ("listener", Fate.SET_AGAIN, "TCP_FASTOPEN", 6, 23, 5),
    ("listener", Fate.SET_AGAIN, "TCP_MAXSEG", 6, 2, 1000),
    ("listener", Fate.SET_AGAIN, "TCP_SAVE_SYN", 6, 27, 1),
    ("datagram", Fate.KEPT, "SO_BROADCAST", 1, 6, 1),
    ("datagram", Fate.SET_AGAIN, "UDP_SEGMENT", 17, 103, 1400),
    ("datagram", Fate.SET_AGAIN, "UDP_GRO", 17, 104, 1),
    ("datagram", Fate.SET_AGAIN, "IP_RECVERR", 0, 11, 1),
    ("datagram", Fate.SET_AGAIN, "IP_MULTICAST_TTL", 0, 33, 9),
    ("datagram", Fate.SET_AGAIN, "SO_PEEK_OFF", 1, 42, 3),
    ("datagram", Fate.SET_AGAIN, "SO_RXQ_OVFL", 1, 40, 1),
)

ROWS = [
    Row(
        "affinity",
        Fate.SET_AGAIN,
        "os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})",
        "sorted(os.sched_getaffinity(0))",
    ),
    Row(
        "affinity of a thread",
        Fate.SET_AGAIN,
        "tid = thread(lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}))",
        "sorted(os.sched_getaffinity(tid)), sorted(os.sched_getaffinity(0))",
    ),
    Row("I/O priority", Fate.SET_AGAIN, "call(251, 1, 0, 2 << 13 | 5)", "call(252, 1, 0)"),
    Row(
        "I/O priority of a thread",
        Fate.SET_AGAIN,
        "tid = thread(lambda: call(251, 1, 0, 3 << 13))",
        "call(252, 1, tid)",
    ),
    Row("timer slack", Fate.SET_AGAIN, "prctl(29, 123456)", "prctl(30)"),
    Row("timer slack of a thread", Fate.SET_AGAIN, "thread(lambda: prctl(29, 77777), lambda: prctl(30))", "ask()"),
    Row(
        "core dump filter",
        Fate.SET_AGAIN,
        "open('/proc/self/coredump_filter', 'w').write('0x7f')",
        "open('/proc/self/coredump_filter').read()",
    ),
    Row(
        "time slice",
        Fate.SET_AGAIN,
        "call(314, 0, struct.pack('IIQiIQQQ', 48, 0, 0, 0, 0, 20_000_000, 0, 0), 0)",
        "attributes(0)",
    ),
    Row(
        "timerfd at a time of the wall clock",
        Fate.SET_AGAIN,
        "timer = libc.timerfd_create(0, 0); due = int(time.time()) + 1000; "
        "libc.timerfd_settime(timer, 1, struct.pack('qqqq', 0, 0, due, 0), None)",
        "abs(time.time() + left(libc.timerfd_gettime, timer) - due) < 0.3",
    ),
    Row(
        "epoll's busy polling",
        Fate.SET_AGAIN,
        "poller = select.epoll(); fcntl.ioctl(poller, 0x40088a01, struct.pack('IHBB', 64, 8, 1, 0))",
        "fcntl.ioctl(poller, 0x80088a02, bytes(8))",
    ),
    *(
        Row(
            f"{name} of a {kind}",
            fate,
            f"made = with_option({kind}(), {level}, {number}, {value!r})",
            f"made.getsockopt({level}, {number}{', 16' if isinstance(value, bytes) else ''})",
        )
        for kind, fate, name, level, number, value in _OPTIONS
    ),
    Row("nice", Fate.KEPT, "os.nice(7)", "os.getpriority(0, 0)"),
    Row(
        "real-time scheduling",
        Fate.KEPT,
        "os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(5))",
        "os.sched_getscheduler(0), os.sched_getparam(0).sched_priority",
    ),
    Row(
        "limits",
        Fate.KEPT,
        "resource.setrlimit(resource.RLIMIT_STACK, (1 << 23, 1 << 24))",
        "[resource.getrlimit(number) for number in range(16)]",
    ),
    Row(
        "oom_score_adj",
        Fate.KEPT,
        "open('/proc/self/oom_score_adj', 'w').write('300')",
        "open('/proc/self/oom_score_adj').read()",
    ),
    Row("umask and groups", Fate.KEPT, "os.umask(0o027); os.setgroups([5, 6, 7])", "status('Umask'), os.getgroups()"),
    Row("PR_SET_DUMPABLE", Fate.KEPT, "prctl(4, 0)", "prctl(3)"),
    Row("PR_SET_THP_DISABLE", Fate.KEPT, "prctl(41, 1)", "prctl(42)"),
    Row("securebits", Fate.KEPT, "prctl(28, 1)", "prctl(27)"),
    Row("mlock", Fate.KEPT, "address = memory(1 << 16); call(149, address, 1 << 16)", "flags(address)"),
    Row(
        "guard regions",
        Fate.KEPT,
        "address = memory(1 << 16); call(28, address + 4096, 4096, 102)",
        "flags(address)",
    ),
    *(
        Row(name, Fate.KEPT, f"address = memory(1 << 22); call(28, address, 1 << 22, {advice})", "flags(address)")
        for name, advice in _MADVICE.items()
    ),
    Row(
        "seals of a memfd",
        Fate.KEPT,
        "file = os.memfd_create('x', 2); fcntl.fcntl(file, 1033, 2)",
        "fcntl.fcntl(file, 1034)",
    ),
    Row(
        "size of a pipe",
        Fate.KEPT,
        "reader, _ = os.pipe(); fcntl.fcntl(reader, 1031, 1 << 18)",
        "fcntl.fcntl(reader, 1032)",
    ),
    Row(
        "owner and signal of a file",
        Fate.KEPT,
        "reader, _ = os.pipe(); fcntl.fcntl(reader, 8, os.getpid()); fcntl.fcntl(reader, 10, 12)",
        "fcntl.fcntl(reader, 9), fcntl.fcntl(reader, 11)",
    ),
    Row(
        "processor time timers",
        Fate.KEPT,
        "signal.signal(signal.SIGVTALRM, lambda *_: 0); signal.setitimer(signal.ITIMER_VIRTUAL, 1000, 5)",
        "round(signal.getitimer(signal.ITIMER_VIRTUAL)[0], -1)",
    ),
    Row(
        "mlockall",
        Fate.REFUSED,
        "call(151, 3)",
        "'lo' in flags(memory(1 << 16))",
        "locked all its memory (mlockall)",
    ),
    Row(
        "mseal",
        Fate.REFUSED,
        "address = memory(1 << 16); call(462, address, 4096, 0)",
        "'sl' in flags(address)",
        "sealed mappings (mseal)",
    ),
    Row(
        "EFD_SEMAPHORE",
        Fate.REFUSED,
        "number = os.eventfd(3, os.EFD_SEMAPHORE)",
        "os.eventfd_read(number) == 1 and os.eventfd_write(number, 1)",
        "EFD_SEMAPHORE",
    ),
    Row("personality", Fate.REFUSED, "call(135, 0x0040000)", "call(135, 0xffffffff)", "personality (0x40000"),
    Row(
        "NUMA policy of a thread",
        Fate.NOTED,
        "mask = ctypes.c_ulong(1); thread(lambda: call(238, 2, ctypes.byref(mask), 64), policy)",
        "ask()",
        "NUMA policy (bind:0)",
    ),
    Row(
        "NUMA policy of a mapping",
        Fate.NOTED,
        "mask = ctypes.c_ulong(1); address = memory(1 << 20); call(237, address, 1 << 20, 3, ctypes.byref(mask), 64, 0)",
        "[line.split()[1] for line in open('/proc/self/numa_maps') if int(line.split()[0], 16) == address]",
        "NUMA policy (interleave:0)",
    ),
    Row(
        "MLOCK_ONFAULT",
        Fate.NOTED,
        "address = memory(1 << 16); call(325, address, 1 << 16, 1)",
        "flags(address)",
        "MLOCK_ONFAULT",
    ),
    Row("PR_SET_MEMORY_MERGE", Fate.NOTED, "prctl(67, 1)", "prctl(68)", "PR_SET_MEMORY_MERGE"),
]
