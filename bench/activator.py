"""What the activator costs: `python bench/activator.py`, to bench/results/activator.json. Needs no GPU.

The same load goes straight to the server, through the activator, and (with `--llama-swap BINARY`) through llama-swap, taking turns
in one run; values are medians of the rounds, each with the direct one or llama-swap's as its baseline. Activator and
llama-swap get the same processor cores (`--cores`, as many workers, GOMAXPROCS); clients and servers have the others
to themselves where there are enough.

*added*: latency at a fixed rate, less the direct one: what a client notices who doesn't drive the machine to its limit. *rps*: as
fast as it goes, worst ratio over all counts of connections.

llama-swap: `git clone https://github.com/mostlygeek/llama-swap && cd llama-swap && mkdir -p internal/server/ui_dist && touch
internal/server/ui_dist/index.html && CGO_ENABLED=0 go build .`
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kybernate.benchmarks import results
from kybernate.benchmarks.results import Baseline, Case
from kybernate.model.messages import Configure, Endpoint, Limits, Load, Message, Open, Status, decode, encode

HERE = Path(__file__).resolve().parent
TOP = HERE.parent
CONNECTIONS = (1, 8, 64, 256)
PACED_CONNECTIONS = 32
STREAMS = 64
EVENTS_GAP_US = 10_000
HELD = 10_000
DIRECT, OURS, LLAMA_SWAP = "direct", "kybernate", "llama-swap"


class AgentEnd:
    """The workers' socket, as the agent has it: lends the model, and reads what it is told."""

    def __init__(self, path: Path, endpoints: Sequence[Endpoint]) -> None:
        self._first = [
            Configure(endpoints=tuple(endpoints), held_max=4 * HELD),
            *(Status(e.model, "running") for e in endpoints),
        ]
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._lines: list[socket.socket] = []
        self.waiting: dict[socket.socket, int] = {}
        threading.Thread(target=self._accept, daemon=True).start()

    def send(self, message: Message) -> None:
        for line in self._lines:
            line.sendall(encode(message))

    def held(self) -> int:
        return sum(self.waiting.values())

    def _accept(self) -> None:
        while True:
            line, _ = self._listener.accept()
            line.sendall(b"".join(encode(message) for message in self._first))
            line.sendall(encode(Open("m", 1, None)))
            self._lines.append(line)
            threading.Thread(target=self._read, args=(line,), daemon=True).start()

    def _read(self, line: socket.socket) -> None:
        for text in line.makefile("rb"):
            message = decode(text)
            if isinstance(message, Load) and message.model == "held":
                self.waiting[line] = message.waiting


class Clients:
    """bench/activator_load.py, several times."""

    def __init__(self, count: int) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, str(HERE / "activator_load.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(count)
        ]

    def order(self, kind: str, *, shared: dict[str, float] | None = None, **settings: Any) -> list[dict[str, Any]]:
        """`shared` are numbers that the clients divide among themselves."""
        shares = [self._share(shared or {}, number) for number in range(len(self._processes))]
        busy = [(p, s) for p, s in zip(self._processes, shares, strict=True) if all(s.values())]
        for process, share in busy:
            assert process.stdin is not None
            process.stdin.write(json.dumps({"kind": kind, **settings, **share}) + "\n")
            process.stdin.flush()
        answers = []
        for process, _ in busy:
            assert process.stdout is not None
            answers.append(json.loads(process.stdout.readline()))
        failed = sum(answer.get("failed", 0) for answer in answers)
        if failed:
            raise SystemExit(f"{failed} connections failed in {kind} {settings}")
        return answers

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def _share(self, whole: dict[str, float], number: int) -> dict[str, float]:
        n = len(self._processes)
        counts = {name: int(value) // n + (number < int(value) % n) for name, value in whole.items() if name != "rate"}
        if "rate" in whole and "connections" in whole:
            counts["rate"] = whole["rate"] * counts["connections"] / whole["connections"]  # type: ignore[assignment]
        return dict(counts)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def processes() -> Iterator[list[subprocess.Popen[Any]]]:
    started: list[subprocess.Popen[Any]] = []
    try:
        yield started
    finally:
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit(f"nothing listens on port {port} after 60 s") from None
            time.sleep(0.02)
        else:
            return


def median_of(answers: list[dict[str, Any]], what: str, p: str) -> float:
    return statistics.median(answer[what][p] for answer in answers if answer[what])


def resident(pids: Sequence[int]) -> int:
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * os.sysconf("SC_PAGE_SIZE")


def start_llama_swap(
    binary: Path, directory: Path, *, upstream: int, cores: int, pin: list[str]
) -> tuple[int, list[str], dict[str, str]]:
    port = free_port()
    config = directory / "llama-swap.yaml"
    config.write_text(
        "logLevel: error\nlogToStdout: none\nmodels:\n  m:\n    cmd: sleep 86400\n"
        f"    proxy: http://127.0.0.1:{upstream}\n    checkEndpoint: none\n    concurrencyLimit: 100000\n"
    )
    command = [*pin, str(binary), "-config", str(config), "-listen", f"127.0.0.1:{port}"]
    return port, command, {**os.environ, "GOMAXPROCS": str(cores)}


def added(samples: dict[str, list[dict[str, float]]], name: str, p: str) -> tuple[float, ...]:
    """Differences to the direct one of the same round, in ms."""
    return tuple((mine[p] - direct[p]) * 1e3 for mine, direct in zip(samples[name], samples[DIRECT], strict=True))


def ratio(samples: dict[str, list[float]], name: str, other: str) -> tuple[float, ...]:
    return tuple(mine / theirs for mine, theirs in zip(samples[name], samples[other], strict=True))


def turns(names: Sequence[str], number: int) -> list[str]:
    shift = number % len(names)
    return [*names[shift:], *names[:shift]]


def latency_and_throughput(clients: Clients, ports: dict[str, int], options: argparse.Namespace) -> list[Case]:
    cases = []
    paced: dict[str, list[dict[str, float]]] = {name: [] for name in ports}
    for number in range(options.rounds):
        for name in turns(list(ports), number):
            shared = {"connections": PACED_CONNECTIONS, "rate": options.rate}
            answers = clients.order("paced", port=ports[name], seconds=options.seconds, shared=shared)
            paced[name].append({p: median_of(answers, "times", p) for p in ("p50", "p90", "p99")})
    for p in ("p50", "p99"):
        baseline = None
        if LLAMA_SWAP in ports:
            theirs = added(paced, LLAMA_SWAP, p)
            baseline = Baseline(LLAMA_SWAP, statistics.median(theirs), len(theirs))
        direct = statistics.median(sample[p] for sample in paced[DIRECT]) * 1e3
        cases.append(Case(f"added.{p}_ms", "ms", added(paced, OURS, p), baseline, notes={"direct_ms": direct}))
        say(cases[-1])
    worst: dict[str, Case] = {}
    for count in CONNECTIONS:
        found: dict[str, list[float]] = {name: [] for name in ports}
        times: dict[str, list[float]] = {name: [] for name in ports}
        for number in range(options.rounds):
            for name in turns(list(ports), number):
                shared = {"connections": count}
                answers = clients.order("closed", port=ports[name], seconds=options.seconds, shared=shared)
                found[name].append(sum(answer["requests"] for answer in answers) / options.seconds)
                times[name].append(median_of(answers, "times", "p99") * 1e3)
        for name in ports:
            case = Case(
                f"rps.{name}.c{count}", "1/s", tuple(found[name]), notes={"p99_ms": statistics.median(times[name])}
            )
            cases.append(case)
            say(case)
        for other in (DIRECT, LLAMA_SWAP):
            if other in ports:
                values = ratio(found, OURS, other)
                key = f"rps.vs_{other.replace('-', '_')}"
                case = Case(key, "ratio", values, Baseline(other, statistics.median(found[other]), options.rounds))
                if key not in worst or case.value < worst[key].value:
                    worst[key] = Case(key, "ratio", values, case.baseline, notes={"worst_at_connections": count})
    for case in worst.values():
        say(case)
    return [*worst.values(), *cases]


def streaming(clients: Clients, ports: dict[str, int], options: argparse.Namespace) -> list[Case]:
    cases = []
    delays: dict[str, list[dict[str, float]]] = {name: [] for name in ports}
    rates: dict[str, list[float]] = {name: [] for name in ports}
    for number in range(options.rounds):
        for name in turns(list(ports), number):
            settings = {"events": 100, "gap_us": EVENTS_GAP_US, "seconds": options.seconds, "port": ports[name]}
            answers = clients.order("stream", shared={"connections": STREAMS}, **settings)
            delays[name].append({p: median_of(answers, "delays_ns", p) / 1e3 for p in ("p50", "p99")})
        for name in turns(list(ports), number):
            settings = {"events": 5000, "gap_us": 0, "seconds": options.seconds, "port": ports[name]}
            answers = clients.order("stream", shared={"connections": STREAMS}, **settings)
            rates[name].append(
                sum(answer["events"] for answer in answers) / max(answer["seconds"] for answer in answers)
            )
    for p in ("p50", "p99"):
        found = {
            name: tuple(mine[p] - direct[p] for mine, direct in zip(delays[name], delays[DIRECT], strict=True))
            for name in ports
        }
        baseline = None
        if LLAMA_SWAP in ports:
            baseline = Baseline(LLAMA_SWAP, statistics.median(found[LLAMA_SWAP]), options.rounds)
        name = "added_per_token_us" if p == "p50" else "added_per_token_us.p99"
        cases.append(Case(name, "us", found[OURS], baseline, notes={"streams": STREAMS, "tokens_per_s": STREAMS * 100}))
        say(cases[-1])
    for name in ports:
        cases.append(Case(f"tokens_per_s.{name}", "1/s", tuple(rates[name]), notes={"streams": STREAMS}))
        say(cases[-1])
    return cases


def holding(clients: Clients, port: int, agent: AgentEnd, pids: Sequence[int]) -> list[Case]:
    before = resident(pids)
    sent = sum(answer["sent"] for answer in clients.order("hold", port=port, shared={"count": HELD}, model="held"))
    deadline = time.monotonic() + 60
    while agent.held() < sent and time.monotonic() < deadline:
        time.sleep(0.02)
    held = agent.held()
    each = (resident(pids) - before) / max(1, held)
    agent.send(Open("held", 1, None, waited_for="ram", seconds=1.0))
    answered = sum(answer["answered"] for answer in clients.order("collect"))
    cases = [
        Case("held_lost", "requests", (float(sent - answered),), notes={"held": held}),
        Case("held_bytes_each", "bytes", (each,), notes={"of_it_body": 950}),
    ]
    for case in cases:
        say(case)
    return cases


def say(case: Case) -> None:
    baseline = f"  ({case.baseline.name} {case.baseline.value:.4g})" if case.baseline else ""
    print(f"{case.case:28} {case.value:10.4g} {case.unit}{baseline}", flush=True)


def main() -> int:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--llama-swap", type=Path, help="its binary; left out, it isn't compared with")
    parser.add_argument(
        "--llama-swap-version", default="version unknown", help="commit it was built from, for the notes"
    )
    parser.add_argument("--cores", type=int, default=max(1, cores // 4), help="for the activator, and for llama-swap")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rate", type=float, default=1000.0, help="requests a second at which latency is measured")
    parser.add_argument("--output", type=Path, default=TOP / "bench" / "results" / "activator.json")
    options = parser.parse_args()
    others = max(1, (cores - options.cores) // 2)
    pin: list[str] = []
    if cores >= 3 * options.cores:
        mine = sorted(os.sched_getaffinity(0))
        pin = ["taskset", "-c", ",".join(map(str, mine[: options.cores]))]
        os.sched_setaffinity(0, mine[options.cores :])
    with tempfile.TemporaryDirectory() as temporary, processes() as started:
        directory = Path(temporary)
        ports = {DIRECT: free_port(), OURS: free_port()}
        for _ in range(others):
            started.append(subprocess.Popen([sys.executable, str(HERE / "activator_server.py"), str(ports[DIRECT])]))
        endpoint = Endpoint("m", ports[DIRECT], limits=Limits(queue=4 * HELD))
        held = Endpoint("held", ports[DIRECT], limits=Limits(queue=4 * HELD))
        agent = AgentEnd(directory / "workers.sock", (endpoint, held))
        workers = []
        for number in range(options.cores):
            command = [*pin, sys.executable, "-m", "kybernate.proxy", "--agent", str(directory / "workers.sock")]
            command += [
                "--listen",
                f"127.0.0.1:{ports[OURS]}",
                "--worker",
                str(number),
                "--workers",
                str(options.cores),
            ]
            command += ["--metrics-directory", str(directory / "metrics")]
            workers.append(subprocess.Popen(command))
        started += workers
        if options.llama_swap is not None:
            port, command, environment = start_llama_swap(
                options.llama_swap, directory, upstream=ports[DIRECT], cores=options.cores, pin=pin
            )
            ports[LLAMA_SWAP] = port
            started.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
        for port in ports.values():
            wait_for(port)
        clients = Clients(others)
        try:
            for port in ports.values():  # once, unmeasured: imports, pools, and llama-swap's start of its "model"
                clients.order("closed", port=port, seconds=1.0, shared={"connections": 64})
            cases = latency_and_throughput(clients, ports, options)
            cases += streaming(clients, ports, options)
            cases += holding(clients, ports[OURS], agent, [worker.pid for worker in workers])
        finally:
            clients.stop()
    theirs = options.llama_swap_version if options.llama_swap is not None else "left out"
    notes = [
        f"{options.cores} workers on as many cores; llama-swap ({theirs}) with GOMAXPROCS={options.cores} on the same ones",
        f"{others} clients, {others} servers"
        + ("" if pin else "; all processes share all cores, so these numbers are rough"),
        f"added: {options.rate:g} requests a second over {PACED_CONNECTIONS} connections, 1 kB each way",
    ]
    results.write(options.output, results.document("activator", cases, simulated=False, notes=notes))
    print(f"written: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
