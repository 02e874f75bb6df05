"""The `nvme` tier's medium: a directory of a local file system.

Packs are written and read with O_DIRECT, straight from and into the caller's memory, with as many calls in flight as there
are threads. File systems without it (some tmpfs) are used through the page cache. A pack is written under a temporary
name, synced, renamed; the directory is synced before any manifest is written that needs it. Its room is allocated ahead:
so a full disk is known at once, and parallel writes don't wait for each other to make the file longer.

One agent at a time: the directory is locked for as long as it is open.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from kybernate.model.errors import BadInput, Busy, KybernateError, NoRoom
from kybernate.model.quantities import format_size
from kybernate.model.types import MIB
from kybernate.store.errors import Damaged
from kybernate.store.media import SMALL_BYTES_MAX, Absent, Entry, too_large
from kybernate.store.memory import PAGE_BYTES, is_aligned
from kybernate.store.packs import PackId
from kybernate.store.progress import Cancel
from kybernate.store.tenants import TenantName

_LOCK = ".lock"
_PARTIAL = ".partial-"
_LEAST_PACK_BYTES = 8 * MIB
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LocalMedium:
    """See the module and `media.Medium`."""

    keeps_views = False
    wants_alignment = True
    shared = False
    finishing = 2
    held_bytes = 0
    read_bytes = 8 * MIB

    def __init__(self, root: Path, *, pack_bytes: int = 256 * MIB, threads: int = 16) -> None:
        """Touches nothing before `open`.

        Raises:
            BadInput: the path isn't absolute or has '..' in it.
        """
        if not root.is_absolute() or ".." in root.parts:
            raise BadInput(f"bad directory {str(root)[:200]!r} for a tier", hint="use an absolute path without '..'")
        self.root = root
        self.where = str(root)
        self.pack_bytes = pack_bytes
        self.threads = threads
        self._lock: int | None = None

    # -- the whole ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        try:
            self.root.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as e:
            raise BadInput(f"can't use {self.root} for snapshots: {e.strerror}") from e
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(lock)
            raise Busy(f"another agent uses {self.root}", hint="give each agent a directory of its own") from e
        self._lock = lock
        for partial in self.root.glob(f"*/*/{_PARTIAL}*"):  # of an agent that died
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def free_bytes(self) -> int | None:
        try:
            status = os.statvfs(self.root)
        except OSError:
            return None
        return status.f_bavail * status.f_frsize

    def tenants(self) -> list[str]:
        with os.scandir(self.root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    # -- small things ------------------------------------------------------------------------------------------------

    def get(self, key: str, *, maximum: int = SMALL_BYTES_MAX) -> bytes:
        try:
            with (self.root / key).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                content = file.read(maximum + 1) if size <= maximum else b""
        except (FileNotFoundError, NotADirectoryError) as e:
            raise Absent(key) from e
        except OSError as e:
            raise Damaged(f"can't read {self.root / key}: {e.strerror}") from e
        if size > maximum or len(content) > maximum:
            raise too_large(str(self.root / key), size if size > maximum else None, maximum)
        return content

    def create(self, key: str, content: bytes) -> bool:
        path = self.root / key
        partial = path.with_name(f"{_PARTIAL}{secrets.token_hex(8)}")
        try:
            self._make_directory(path.parent)
            try:
                with partial.open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.link(partial, path)  # unlike a rename, it takes nobody's place
                try:
                    _sync_directory(path.parent)
                except BaseException:
                    path.unlink(missing_ok=True)
                    raise
            except FileExistsError:
                return False
            finally:
                partial.unlink(missing_ok=True)
        except OSError as e:
            _explain(e, f"can't write {path}")
        return True

    def delete(self, key: str) -> None:
        path = self.root / key
        try:
            path.unlink()
            _sync_directory(path.parent)
        except FileNotFoundError:
            return
        except OSError as e:
            _explain(e, f"can't remove {path}")

    def entries(self, prefix: str) -> Iterator[Entry]:
        try:
            entries = list(os.scandir(self.root / prefix))
        except FileNotFoundError:
            return
        except OSError as e:
            raise Damaged(f"can't list {self.root / prefix}: {e.strerror}") from e
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or not entry.is_file(follow_symlinks=False):
                continue
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                yield Entry(entry.name, status.st_size, status.st_mtime)

    # -- packs -------------------------------------------------------------------------------------------------------

    def open_pack(self, tenant: TenantName, pack: PackId, *, capacity: int, cancel: Cancel) -> LocalPackFile:
        del cancel  # nothing waits here
        directory = self.root / tenant / "packs"
        try:
            self._make_directory(directory)
        except OSError as e:
            _explain(e, f"can't make {directory}")
        return LocalPackFile(directory, pack, capacity)

    def read(self, tenant: TenantName, pack: PackId, offset: int, views: Sequence[memoryview], cancel: Cancel) -> None:
        del cancel
        path = self.root / tenant / "packs" / pack
        direct = offset % PAGE_BYTES == 0 and all(is_aligned(view) for view in views)
        try:
            fd = _open(path, os.O_RDONLY, direct=direct)
        except FileNotFoundError as e:
            raise Absent(pack) from e
        except OSError as e:
            raise Damaged(f"can't open {path}: {e.strerror}") from e
        try:
            _read_all(fd, list(views), offset, path)
        finally:
            os.close(fd)

    def pack_size(self, tenant: TenantName, pack: PackId) -> int:
        try:
            return (self.root / tenant / "packs" / pack).stat().st_size
        except FileNotFoundError as e:
            raise Absent(pack) from e

    def sync(self, tenant: TenantName) -> None:
        directory = self.root / tenant / "packs"
        try:
            _sync_directory(directory)
        except FileNotFoundError:
            return  # no pack was needed
        except OSError as e:
            _explain(e, f"can't sync {directory}")

    def _make_directory(self, directory: Path) -> None:
        """With its parents below the root, each of them durable."""
        if directory.is_dir():
            return
        if directory.parent != self.root:
            self._make_directory(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
        _sync_directory(directory.parent)


class LocalPackFile:
    """See `media.PackFile`."""

    def __init__(self, directory: Path, pack: PackId, capacity: int) -> None:
        self._path = directory / pack
        self._partial = directory / f"{_PARTIAL}{pack}"
        try:
            self._fd = _open(self._partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, direct=True)
        except OSError as e:
            _explain(e, f"can't make {self._partial}")
        self.capacity = capacity
        room = os.fstatvfs(self._fd)
        while self.capacity * 2 > room.f_bavail * room.f_frsize and self.capacity >= 2 * _LEAST_PACK_BYTES:
            self.capacity //= 2  # on a disk that is nearly full: what is dumped beside needs room, too
        while (error := _allocate(self._fd, self.capacity)) != 0:
            self.capacity //= 2
            if error not in _FULL or self.capacity < _LEAST_PACK_BYTES:
                self.abandon()
                _explain(
                    OSError(error, os.strerror(error)), f"can't make a pack of {format_size(capacity)} in {directory}"
                )
        self.capacity -= self.capacity % PAGE_BYTES

    def write(self, offset: int, view: memoryview) -> None:
        try:
            while len(view):
                written = os.pwrite(self._fd, view, offset)
                offset += written
                view = view[written:]
        except OSError as e:
            _explain(e, f"can't write {self._path}")

    def finish(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
            os.fdatasync(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._partial.rename(self._path)
        except OSError as e:
            _explain(e, f"can't finish {self._path}")

    def abandon(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with contextlib.suppress(OSError):
            self._partial.unlink()


def _open(path: Path, flags: int, *, direct: bool) -> int:
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW
    if direct:
        try:
            return os.open(path, flags | os.O_DIRECT, 0o600)
        except OSError as e:
            if e.errno != errno.EINVAL:
                raise
            flags &= ~os.O_EXCL  # Linux makes the file before it finds that it can't
    return os.open(path, flags, 0o600)


def _read_all(fd: int, views: list[memoryview], offset: int, path: Path) -> None:
    while views:
        try:
            count = os.preadv(fd, views, offset)
        except OSError as e:
            raise Damaged(f"can't read {path}: {e.strerror}") from e
        if count == 0:
            raise Damaged(f"{path} is cut off: it ends before {offset}")
        offset += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = views[0][count:]


def _allocate(fd: int, size: int) -> int:
    """Room for a file, 0 or an error number. The C library's posix_fallocate would write where it isn't supported."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if libc.fallocate(fd, 0, 0, size) == 0:
        return 0
    if (error := ctypes.get_errno()) not in (errno.EOPNOTSUPP, errno.ENOSYS):
        return error
    try:
        os.ftruncate(fd, size)
    except OSError as e:
        return e.errno or errno.EIO
    return 0


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _explain(error: OSError, what: str) -> NoReturn:
    if error.errno in _FULL:
        raise NoRoom(
            f"{what}: the disk is full", hint="`kybernate gc`, remove snapshots, or move some to another tier"
        ) from error
    raise KybernateError(f"{what}: {error.strerror}") from error
