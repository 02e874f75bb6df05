"""Hashes chunks of VRAM on the GPU: 128 bits for each 2 MiB, keyed, to tell which chunks changed since the last copy.

The hash. A chunk is 131,072 words of 16 bytes, word w = (a, b) as two 64-bit halves. 512 lanes share them: lane l takes the
words l, l + 512, l + 1024, ... in that order. Each lane has two secret numbers p, q (from the key and l) and two chains s, t:

    s = fold(a ^ p, b ^ s)        t = fold(b ^ q, a ^ t)        fold(x, y) = low(x*y) ^ high(x*y) ^ x ^ y

At the end each chain is scrambled with the lane's other number, the lanes are summed modulo 2^64, and the two sums are
scrambled with the key. All zeros (found by OR-ing all words, not by the chains) is (0, 0); nothing else is.

Why it finds every change. Order within a lane matters because each step feeds on the one before, and the lane matters because
p and q differ: moved and swapped words change the outcome like any other change. A change in one word alters both chains at
once unless a product of unknown factors happens to agree, which for each chain has a chance of about 2^-64, s and t being
keyed apart and taking the halves in opposite roles; a chain that differs can fall back together later with about 2^-64 a
step. `fold` keeps x and y beside the product, so a factor that happens to be zero doesn't wipe out the other (the known
weak spot of multiply-and-fold hashes). Sums and scrambles don't lose anything when one lane differs. Over the 256 steps that
is about 2^-56 for one chain and 2^-112 for both together: with 20,000 chunks hashed each second, one miss in 10^22 years.

The key is random and secret to the agent, so a workload can't prepare chunks that collide; even so the hash is not a
cryptographic one, and whatever is stored or shared is named by BLAKE3.

Limits: sizes are whole chunks; results of two agents compare only under one key (`load_key` keeps it).
"""

from __future__ import annotations

import ctypes
import os
import secrets
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kybernate.cuda.driver import Gpu, call
from kybernate.cuda.extents import Extent, held
from kybernate.cuda.kernels import Kernels
from kybernate.cuda.planning import Hashes
from kybernate.model.errors import KybernateError
from kybernate.model.types import CHUNK_BYTES

LANES = 512
"""Threads of a block; as in kernels.cu."""

_KEY = struct.Struct("<QQ")
_STREAM_NON_BLOCKING = 1
_HASH_BYTES = 16
_BASE_BYTES = 8


@dataclass(frozen=True, slots=True)
class HashKey:
    """The two halves of the secret key."""

    low: int
    high: int


def load_key(path: Path) -> HashKey:
    """The key kept at `path`; made there, readable by its owner only, when there is none.

    Raises:
        KybernateError: it can't be read or written, or is damaged.
    """
    try:
        if not path.exists():
            new = path.with_suffix(f".{os.getpid()}.new")
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_KEY.size))
            new.rename(path)
        content = path.read_bytes()
    except OSError as e:
        raise KybernateError(f"can't keep the hash key at {path}: {e.strerror}") from e
    if len(content) != _KEY.size:
        raise KybernateError(f"the hash key {path} is damaged", hint="remove it while no workload is paused")
    return HashKey(*_KEY.unpack(content))


class Hasher:
    """Hashes extents of one GPU. One call at a time (a lock sees to it); all memory it needs is taken at the start.

    The kernel reads the chunks' addresses from pinned host memory and writes the hashes there itself. A copy of a few
    hundred bytes would wait behind all copies that are queued in its direction: 0.75 s in the middle of a swap (measured).
    """

    def __init__(self, gpu: Gpu, *, key: HashKey, kernels: Kernels) -> None:
        self._gpu = gpu
        self._key = key
        self._kernels = kernels
        self._lock = threading.Lock()
        # Every chunk of the GPU at once: 24 bytes for each, 1.7 MB for 139 GiB.
        self._chunks_max = gpu.total_bytes // CHUNK_BYTES + 1
        with gpu.current():
            self._stream = call("cuStreamCreate", _STREAM_NON_BLOCKING)
            self._hashes = int(call("cuMemHostAlloc", self._chunks_max * (_HASH_BYTES + _BASE_BYTES), 0))
        self._bases = self._hashes + self._chunks_max * _HASH_BYTES
        self._host_hashes = _array(self._hashes, self._chunks_max * 2).reshape(-1, 2)
        self._host_bases = _array(self._bases, self._chunks_max)

    @property
    def key(self) -> HashKey:
        """This agent's own."""
        return self._key

    def hash(self, extents: Sequence[Extent], key: HashKey | None = None) -> Hashes:
        """The hashes of all chunks, in order of the extents, under this agent's key or another one.

        Raises:
            CudaError: the GPU failed.
            WorkloadLost: an extent is gone.
        """
        count = sum(extent.chunks for extent in extents)
        result = np.empty((count, 2), dtype=np.uint64)
        bases = chunk_addresses(extents)
        with self._lock, self._gpu.current(), held(extents):
            for start in range(0, count, self._chunks_max):
                part = slice(start, min(start + self._chunks_max, count))
                self._run(bases[part], result[part], key or self._key)
        return result

    def _run(self, bases: npt.NDArray[np.uint64], result: Hashes, key: HashKey) -> None:
        count = len(bases)
        self._host_bases[:count] = bases
        self._kernels.launch(
            "kybernate_hash_chunks",
            grid=count,
            block=LANES,
            stream=self._stream,
            # Unified addressing: a pinned host address is a device address too.
            arguments=(
                np.uint64(self._bases),
                np.uint64(key.low),
                np.uint64(key.high),
                np.uint64(self._hashes),
                np.uint32(count),
            ),
        )
        call("cuStreamSynchronize", self._stream)
        result[:] = self._host_hashes[:count]


def chunk_addresses(extents: Sequence[Extent]) -> npt.NDArray[np.uint64]:
    """The agent's address of every chunk, in order of the extents."""
    if not extents:
        return np.empty(0, dtype=np.uint64)
    counts = np.array([extent.chunks for extent in extents])
    starts = np.array([extent.device_pointer for extent in extents], dtype=np.uint64)
    index = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    addresses: npt.NDArray[np.uint64] = np.repeat(starts, counts) + index.astype(np.uint64) * np.uint64(CHUNK_BYTES)
    return addresses


def _array(address: int, words: int) -> npt.NDArray[np.uint64]:
    cells: Any = (ctypes.c_uint64 * words).from_address(address)
    return np.frombuffer(cells, dtype=np.uint64)


# -- the twin on the CPU, for tests: definition above, plainly ------------------------------------------------------


def reference(chunks: npt.NDArray[np.uint64], key: HashKey) -> Hashes:
    """The same hash, slowly, of an array of shape (chunks, 262144) on the host."""
    words = chunks.reshape(len(chunks), -1, LANES, 2)
    lane = np.arange(LANES, dtype=np.uint64)
    low, high = np.uint64(key.low), np.uint64(key.high)
    p = _scramble(low + lane * np.uint64(0x9E3779B97F4A7C15))
    q = _scramble(high + lane * np.uint64(0xD1B54A32D192ED03))
    s = np.broadcast_to(_scramble(p ^ high), (len(chunks), LANES))
    t = np.broadcast_to(_scramble(q ^ low), (len(chunks), LANES))
    for step in range(words.shape[1]):
        a, b = words[:, step, :, 0], words[:, step, :, 1]
        s = _fold(a ^ p, b ^ s)
        t = _fold(b ^ q, a ^ t)
    sums = np.stack([_scramble(s ^ q).sum(axis=1), _scramble(t ^ p).sum(axis=1)], axis=1, dtype=np.uint64)
    result: Hashes = _scramble(sums ^ np.array([low, high]))
    result[(result == 0).all(axis=1), 1] = 1
    result[~chunks.any(axis=1)] = 0
    return result


def _scramble(x: Hashes) -> Hashes:
    x = x ^ (x >> np.uint64(30))
    x = x * np.uint64(0xBF58476D1CE4E5B9)
    x = x ^ (x >> np.uint64(27))
    x = x * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = x ^ (x >> np.uint64(31))
    return mixed


def _fold(x: Hashes, y: Hashes) -> Hashes:
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    x0, x1, y0, y1 = x & mask, x >> half, y & mask, y >> half
    low, mid, other = x0 * y0, x1 * y0, x0 * y1
    carry = (low >> half) + (mid & mask) + (other & mask)
    high = x1 * y1 + (mid >> half) + (other >> half) + (carry >> half)
    folded: Hashes = (x * y) ^ high ^ x ^ y
    return folded
