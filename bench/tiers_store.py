"""Stages of bench/tiers.py: the store against the disk and the bucket themselves.

Ours is all of it: hashing, dedup, packs, sync, manifest, and on the way back the check of every chunk. The others move as many
bytes and do nothing else:

    disk     fio with several settings, and threads of our own with O_DIRECT; the fastest one counts
    bucket   obstore alone with several settings, and s5cmd and rclone; the fastest one counts

fio, s5cmd and rclone are taken from .cache/bench-tools (`scripts/bench-tools.sh`) or the PATH, where they are. All take turns
in one run. The server is on this host (`scripts/s3server.sh`): so it shares the processor with its clients.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "store"))

import numpy as np
import obstore
from blake3 import blake3
from server import ACCESS, SECRET, Server, client, options
from tiers_plan import Plan, Recorder, file_system, fitting, ram_disk, scratch, size_name

from kybernate.agent.agent import SWITCH_S
from kybernate.benchmarks.results import Baseline, Case
from kybernate.model.errors import NoRoom
from kybernate.model.types import CHUNK_BYTES, GIB, MIB
from kybernate.store import (
    DEFAULT_TENANT,
    Catalog,
    LocalMedium,
    ObjectMedium,
    Space,
    Tier,
    collect,
    keys_of,
    open_reader,
    open_writer,
)

TOOLS = Path(__file__).resolve().parents[1] / ".cache" / "bench-tools"
BUCKET = "bench"
CLIENT_S = 40.0
"""Another client that takes longer for one turn is left out."""

IN_FLIGHT = 16
Step = Callable[[], None]


class Memory:
    """As many chunks as asked for, none like another, none that shrinks; page-aligned."""

    def __init__(self, size: int) -> None:
        """Raises NoRoom when that is less than one chunk."""
        self.count = size // CHUNK_BYTES
        if not self.count:
            raise NoRoom("there is no room to measure in", hint="name another place with --directory or --bucket")
        self.size = self.count * CHUNK_BYTES
        self._map = mmap.mmap(-1, self.size)
        whole = memoryview(self._map)
        self.views = [whole[k * CHUNK_BYTES : (k + 1) * CHUNK_BYTES] for k in range(self.count)]
        self._content = os.urandom(CHUNK_BYTES)
        self.renew(0)

    def renew(self, number: int) -> None:
        """Other content, so that nothing of it was stored before."""
        for k, view in enumerate(self.views):
            view[:] = self._content
            view[:16] = number.to_bytes(8, "little") + k.to_bytes(8, "little")

    def clear(self) -> None:
        for view in self.views:
            view[:] = bytes(CHUNK_BYTES)

    def is_as_renewed(self, number: int) -> bool:
        return all(
            view[:16] == number.to_bytes(8, "little") + k.to_bytes(8, "little") and view[16:] == self._content[16:]
            for k, view in enumerate(self.views)
        )


def seconds(step: Step) -> float:
    began = time.monotonic()
    step()
    return time.monotonic() - began


# -- ours ----------------------------------------------------------------------------------------------------------------


def ours_write(space: Space, memory: Memory) -> None:
    with open_writer(space, "bench", total=memory.size) as writer:
        writer.add_extent(memory.views)
        writer.commit()


def ours_read(space: Space, memory: Memory) -> None:
    with open_reader(space, "bench") as reader:
        reader.read_part(reader.manifest.extents[0], memory.views)


def ours(space: Space, memory: Memory, number: int) -> tuple[float, float]:
    """Seconds to write and to read; what was read is compared."""
    memory.renew(number)
    write = seconds(lambda: ours_write(space, memory))
    memory.clear()
    read = seconds(lambda: ours_read(space, memory))
    if not memory.is_as_renewed(number):
        raise SystemExit("what was read isn't what was written")
    space.delete("bench")
    collect(space)
    return write, read


# -- the disk ------------------------------------------------------------------------------------------------------------


def raw_disk(directory: Path, memory: Memory, _number: int) -> tuple[float, float]:
    """One file, allocated ahead, a chunk a call, with as many threads as ours has; synced at the end."""
    path = directory / "raw"
    flags = os.O_RDWR | os.O_CREAT | os.O_DIRECT

    def write() -> None:
        fd = os.open(path, flags, 0o600)
        os.posix_fallocate(fd, 0, memory.size)
        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            list(threads.map(lambda k: os.pwrite(fd, memory.views[k], k * CHUNK_BYTES), range(memory.count)))
        os.fdatasync(fd)
        os.close(fd)

    def read() -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            list(threads.map(lambda k: os.preadv(fd, [memory.views[k]], k * CHUNK_BYTES), range(memory.count)))
        os.close(fd)

    result = seconds(write), seconds(read)
    path.unlink()
    return result


FIO_SETTINGS = {
    "libaio 2 MiB": ("--ioengine=libaio", "--bs=2M", f"--iodepth={IN_FLIGHT}"),
    "io_uring 1 MiB": ("--ioengine=io_uring", "--bs=1M", f"--iodepth={2 * IN_FLIGHT}"),
}


def fio(program: str, directory: Path, settings: Sequence[str], memory: Memory, _number: int) -> tuple[float, float]:
    path = directory / "fio"

    def run(kind: str, *more: str) -> float:
        command = [
            *(program, "--name=bench", f"--filename={path}", f"--rw={kind}", "--direct=1", f"--size={memory.size}"),
            *("--refill_buffers", "--fallocate=posix", "--output-format=json", *settings, *more),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        job = json.loads(done.stdout)["jobs"][0]
        return float(memory.size / job[kind]["bw_bytes"])

    result = run("write", "--end_fsync=1"), run("read")
    path.unlink()
    return result


# -- the bucket ----------------------------------------------------------------------------------------------------------


def plain_obstore(
    port: int, bucket: str, object_bytes: int, part_bytes: int, checked: bool, memory: Memory, _number: int
) -> tuple[float, float]:
    """Objects of a size, several at once, without hashing or checking anything, and what was got is thrown away.

    `checked`: it is put into the memory and hashed, as whoever restores something must: the least that a store can do.
    """
    store = client(port, bucket)
    each = object_bytes // CHUNK_BYTES
    starts = range(0, memory.count, each)

    def put(start: int) -> None:
        views = memory.views[start : start + each]
        obstore.put(
            store,
            f"plain/{start}",
            iter(views),
            use_multipart=part_bytes < object_bytes,
            chunk_size=part_bytes,
            max_concurrency=8,
        )

    def get(piece: tuple[int, int]) -> None:
        start, offset = piece
        length = min(8 * MIB, len(memory.views[start : start + each]) * CHUNK_BYTES - offset)
        content = memoryview(obstore.get_range(store, f"plain/{start}", start=offset, length=length))
        if not checked:
            return
        first = start + offset // CHUNK_BYTES
        for k, view in enumerate(memory.views[first : first + length // CHUNK_BYTES]):
            part = content[k * CHUNK_BYTES : (k + 1) * CHUNK_BYTES]
            np.copyto(np.frombuffer(view, np.uint8), np.frombuffer(part, np.uint8))
            blake3(view).digest()

    pieces = [
        (start, offset)
        for start in starts
        for offset in range(0, len(memory.views[start : start + each]) * CHUNK_BYTES, 8 * MIB)
    ]
    with ThreadPoolExecutor(4) as few, ThreadPoolExecutor(IN_FLIGHT) as many:
        write = seconds(lambda: list(few.map(put, starts)) and None)
        read = seconds(lambda: list(many.map(get, pieces)) and None)
    for start in starts:
        obstore.delete(store, f"plain/{start}")
    return write, read


def command_client(
    port: int, bucket: str, scratch: Path, program: str, memory: Memory, _number: int
) -> tuple[float, float]:
    """s5cmd or rclone, between files in memory and the bucket."""
    there, back = scratch / "there", scratch / "back"
    for directory in (there, back):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    each = 64 * MIB // CHUNK_BYTES
    for start in range(0, memory.count, each):
        with (there / f"{start}").open("wb") as file:
            file.writelines(memory.views[start : start + each])
    endpoint = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": ACCESS,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "RCLONE_CONFIG_B_TYPE": "s3",
        "RCLONE_CONFIG_B_PROVIDER": "Other",
        "RCLONE_CONFIG_B_ENDPOINT": endpoint,
        "RCLONE_CONFIG_B_ENV_AUTH": "true",
        "RCLONE_CONFIG_B_REGION": "us-east-1",
    }
    if Path(program).name == "s5cmd":
        base = [program, "--endpoint-url", endpoint, "--numworkers", str(IN_FLIGHT)]
        put, get = [*base, "cp", f"{there}/", f"s3://{bucket}/cmd/"], [*base, "cp", f"s3://{bucket}/cmd/*", f"{back}/"]
        clean = [*base, "rm", f"s3://{bucket}/cmd/*"]
    else:
        flags = ["--transfers", str(IN_FLIGHT), "--checkers", str(IN_FLIGHT), "--s3-upload-cutoff", "256M"]
        put, get = (
            [program, "copy", str(there), f"b:{bucket}/cmd", *flags],
            [program, "copy", f"b:{bucket}/cmd", str(back), *flags],
        )
        clean = [program, "purge", f"b:{bucket}/cmd"]
    run = partial(subprocess.run, env=environment, check=True, capture_output=True, timeout=CLIENT_S)
    result = seconds(lambda: run(put) and None), seconds(lambda: run(get) and None)
    run(clean)
    return result


# -- both ----------------------------------------------------------------------------------------------------------------

Turn = Callable[[Memory, int], tuple[float, float]]


def compare(
    names: tuple[str, str],
    baseline: str,
    mine: Turn,
    others: dict[str, Turn],
    memory: Memory,
    rounds: int,
    recorder: Recorder,
) -> None:
    """Turns, in changing order; the first of each isn't counted. One that fails is left out from then on, and said."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ("ours", *others)}
    turns = {"ours": mine, **others}
    for number in range(rounds + 1):
        for name in list(turns) if number % 2 else list(reversed(turns)):
            try:
                took = turns[name](memory, number + 1)
            except (OSError, subprocess.SubprocessError, obstore.exceptions.BaseError) as e:
                if name == "ours":
                    raise
                recorder.note(f"{names[0].partition('.')[0]}: {name} is left out: {_said(e)}")
                del turns[name], found[name]
                continue
            if number:
                found[name].append(took)
            rates = ", ".join(f"{memory.size / s / GIB:.2f} GiB/s" for s in took)
            recorder.say(f"{names[0].partition('.')[0]} {name}: {rates}")
        if number:
            _record(names, baseline, found, memory, recorder)


def _said(error: Exception) -> str:
    words = getattr(error, "stderr", None) or str(error)
    return (words.decode(errors="replace") if isinstance(words, bytes) else words).strip()[-200:]


def _record(
    names: tuple[str, str],
    baseline: str,
    found: dict[str, list[tuple[float, float]]],
    memory: Memory,
    recorder: Recorder,
) -> None:
    others = [name for name in found if name != "ours"]
    for k, case in enumerate(names):
        best = min(others, key=lambda name: statistics.median(t[k] for t in found[name]))
        other = statistics.median(t[k] for t in found[best])
        ratios = tuple(other / t[k] for t in found["ours"])
        recorder.case(Case(f"{case}.of_{baseline}", "ratio", ratios, Baseline(best, 1.0, len(ratios))))
        for name, all_of in found.items():
            rates = tuple(memory.size / t[k] / GIB for t in all_of)
            recorder.case(Case(f"{case}.{name.replace(',', '').replace(' ', '_')}", "GiB/s", rates))


def disk(plan: Plan, recorder: Recorder) -> None:
    """Fills `nvme.*`."""
    sys.setswitchinterval(SWITCH_S)
    memory = Memory(fitting(plan.turn_bytes, plan.directory))
    with scratch(plan.directory, "disk") as place, contextlib.closing(Catalog(place / "catalog.db")) as catalog:
        tier = Tier(LocalMedium(place / "tier"), catalog)
        tier.open()
        others: dict[str, Turn] = {"threads": partial(raw_disk, place)}
        if program := tool("fio"):
            others |= {f"fio {name}": partial(fio, program, place, flags) for name, flags in FIO_SETTINGS.items()}
        else:
            recorder.note("nvme: no fio here, so only threads of our own are compared with")
        recorder.note(f"nvme: {size_name(memory.size)} a turn in {plan.directory} ({file_system(plan.directory)})")
        try:
            mine = partial(ours, tier.space(keys_of(DEFAULT_TENANT)))
            compare(("nvme.write", "nvme.read"), "fio", mine, others, memory, plan.rounds, recorder)
        finally:
            tier.close()


def bucket(plan: Plan, recorder: Recorder) -> None:
    """Fills `object.*`."""
    sys.setswitchinterval(SWITCH_S)
    with (
        scratch(plan.directory, "bucket") as place,
        scratch(Path("/dev/shm"), "client") as files,
        s3_server(plan, 4 * plan.turn_bytes) as server,
        contextlib.closing(Catalog(place / "catalog.db")) as catalog,
    ):
        memory = Memory(min(fitting(plan.turn_bytes, place, spare=0) for place in (server.root, files)))
        tier = Tier(ObjectMedium(f"s3://{BUCKET}/ours", options=options(server.port)), catalog)
        others: dict[str, Turn] = {
            f"obstore {size // MIB} MiB in {part // MIB}": partial(
                plain_obstore, server.port, BUCKET, size, part, False
            )
            for size, part in ((64 * MIB, 8 * MIB), (64 * MIB, 64 * MIB), (16 * MIB, 16 * MIB))
        }
        others["obstore into place, checked"] = partial(plain_obstore, server.port, BUCKET, 64 * MIB, 8 * MIB, True)
        for name in ("s5cmd", "rclone"):
            if program := tool(name):
                others[name] = partial(command_client, server.port, BUCKET, files, program)
            else:
                recorder.note(f"object: no {name} here, so it isn't compared with")
        recorder.note(f"object: {size_name(memory.size)} a turn, {where_bucket(plan)}")
        try:
            tier.open()
            mine = partial(ours, tier.space(keys_of(DEFAULT_TENANT)))
            compare(("object.put", "object.get"), "best_client", mine, others, memory, plan.rounds, recorder)
        finally:
            tier.close()


def where_bucket(plan: Plan) -> str:
    """In words, for a note."""
    place = "RAM" if plan.bucket is None else f"{plan.bucket} ({file_system(plan.bucket)})"
    return f"the S3 server (versitygw) runs on this host and keeps its files in {place}"


@contextlib.contextmanager
def s3_server(plan: Plan, most: int) -> Iterator[Server]:
    """A server with one bucket for `most` bytes. Raises Unbuildable."""
    place = ram_disk(plan.directory, "s3", most + GIB) if plan.bucket is None else scratch(plan.bucket, "s3")
    with place as directory:
        root = directory / "files"
        root.mkdir()
        server = Server(root)
        try:
            server.make_bucket(BUCKET)
            yield server
        finally:
            server.close()


def bucket_settings(server: Server, place: Path) -> dict[str, str]:
    """`agent.store.object` of an agent that uses it; its credentials are written to `place`."""
    credentials = place / "credentials.yaml"
    credentials.touch(0o600)
    credentials.write_text(f"access_key_id: {ACCESS}\nsecret_access_key: {SECRET}\n")
    return {
        "url": f"s3://{BUCKET}/snapshots",
        "endpoint": f"http://127.0.0.1:{server.port}",
        "region": "us-east-1",
        "credentials_file": str(credentials),
    }


def tool(name: str) -> str | None:
    """A program to compare with: built here, or the system's."""
    built = TOOLS / name
    return str(built) if os.access(built, os.X_OK) else shutil.which(name)
