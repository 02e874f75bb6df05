"""A directory's content as one tar file, and back: /dev/shm and the writable layers of a snapshot.

Any tar reads it (pax format; sparse files as GNU tar 1.0 writes them, since shared memory is often made far larger than
it is used). Kept: types, modes, owners, times to the nanosecond, hard links, extended attributes (an overlay's marks are
some), device nodes (an overlay's deletions are some). Sockets are left out: CRIU makes those that somebody listens on.
Entries are sorted, so equal content makes equal bytes.

Both directories are the workload's own, and so is what lies in them, while we are root: no symbolic link is followed, be it
one of many names (hard links to a link are links), nor one that its user puts there meanwhile. Reading goes from directory to
directory by descriptors; what is being laid is nobody's but root's until it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK = 512
_COPY_BYTES = 1 << 20
_LONGEST_PATH = 3500
"""Bytes of a name in the archive: with the directory in front of it, it must be one that the kernel takes."""
_XATTR = "SCHILY.xattr."
_TIME = "KYBERNATE.mtime_ns"
_SKIPPED_XATTRS = ("system.", "trusted.overlay.origin", "trusted.overlay.uuid", "trusted.overlay.impure")
"""An overlay's memory of the file system it was made on; a lie on any other, and it does without."""

_LARGE_COPIES: dict[str, Any] = {"copybufsize": _COPY_BYTES}
_NO_FILTER: dict[str, Any] = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
"""Before Python 3.11.4 there are none, and the argument isn't known."""


def save(directory: int, file: BinaryIO) -> int:
    """Write the content of the open directory `directory` as tar into `file`, which may be a pipe. Returns how many entries
    there are.

    Raises:
        OSError: something in it can't be read, was changed meanwhile, or lies too deep to be laid again.
    """
    count = 0
    links: dict[tuple[int, int], str] = {}
    out = _Counted(file)
    # copybufsize: of what it writes at once, too.
    with tarfile.TarFile(
        fileobj=out,  # type: ignore[arg-type]
        mode="w",
        format=tarfile.PAX_FORMAT,
        encoding="utf-8",
        copybufsize=_COPY_BYTES,
    ) as archive:
        for found in _walk(directory):
            if stat.S_ISSOCK(found.status.st_mode):
                continue
            _add(archive, found, links)
            count += 1
    return count


def lay(file: BinaryIO, into: str | Path) -> None:
    """Extract what `save` wrote into the existing, empty directory, as the same users by number. Needs root for most of it.

    The file is read from the front to the end: it may be a pipe.

    Until it is whole nobody but root can enter the directory.

    Raises:
        tarfile.TarError, OSError: damaged, or the file system can't hold it.
    """
    directory = Path(into)
    os.chown(directory, os.geteuid(), os.getegid(), follow_symlinks=False)
    directory.chmod(0o700)
    top: tarfile.TarInfo | None = None
    times: list[tuple[Path, tarfile.TarInfo]] = []
    kinds: dict[str, bytes] = {".": tarfile.DIRTYPE}
    with tarfile.open(fileobj=file, mode="r|", bufsize=_COPY_BYTES, encoding="utf-8", **_LARGE_COPIES) as archive:
        for entry in archive:
            _check(entry, kinds)
            if entry.name == ".":
                top = entry
                continue
            target = directory / entry.name
            if entry.islnk():  # what it has was set under its first name, which may be a symbolic link's
                os.link(directory / entry.linkname, target, follow_symlinks=False)
                continue
            # No filter: it would drop device nodes and set-id bits. The names are checked above.
            archive.extract(entry, directory, numeric_owner=True, **_NO_FILTER)
            _set(target, entry)
            times.append((target, entry))
    # Deepest last in, first out: setting a file's content changes its directory's time.
    for target, entry in reversed(times):
        _set_time(target, entry)
    if top is not None:
        os.chown(directory, top.uid, top.gid, follow_symlinks=False)
        _set(directory, top)
        _set_time(directory, top)


class _Counted:
    """A file to write to that knows where it is, as a pipe doesn't."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._at = 0

    def tell(self) -> int:
        return self._at

    def write(self, content: bytes) -> int:
        self._at += len(content)
        return self._file.write(content)


def _set(target: Path, entry: tarfile.TarInfo) -> None:
    """After the owner: chown clears set-id bits and capabilities."""
    if not entry.issym():
        target.chmod(entry.mode)
    for key, value in entry.pax_headers.items():
        if key.startswith(_XATTR):
            name, raw = key.removeprefix(_XATTR), value.encode("utf-8", "surrogateescape")
            os.setxattr(target, name, raw, follow_symlinks=False)


def _set_time(target: Path, entry: tarfile.TarInfo) -> None:
    nanoseconds = int(entry.pax_headers.get(_TIME, int(entry.mtime * 1e9)))
    with contextlib.suppress(FileNotFoundError):
        os.utime(target, ns=(nanoseconds, nanoseconds), follow_symlinks=False)


@dataclass(frozen=True, slots=True)
class _Found:
    """Something in the directory. `parent` is open as long as it is looked at."""

    parent: int
    name: str
    """In its parent."""
    path: str
    """From the directory that is saved."""
    status: os.stat_result


def _walk(directory: int) -> Iterator[_Found]:
    """The directory itself first, called ".", parents before children, sorted."""
    yield _Found(directory, ".", ".", os.fstat(directory))
    yield from _below(directory, "")


def _below(directory: int, prefix: str) -> Iterator[_Found]:
    with os.scandir(directory) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        path = prefix + name
        if len(os.fsencode(path)) > _LONGEST_PATH:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path[:80])
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            yield _Found(directory, name, path, status)
            continue
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            yield _Found(directory, name, path, os.fstat(inner))
            yield from _below(inner, f"{path}/")
        finally:
            os.close(inner)


def _add(archive: tarfile.TarFile, found: _Found, links: dict[tuple[int, int], str]) -> None:
    status = found.status
    entry = tarfile.TarInfo(found.path)
    entry.mode = stat.S_IMODE(status.st_mode)
    entry.uid, entry.gid = status.st_uid, status.st_gid
    entry.mtime = int(status.st_mtime)
    kind = stat.S_IFMT(status.st_mode)
    identity = (status.st_dev, status.st_ino)
    if kind != stat.S_IFDIR and status.st_nlink > 1 and identity in links:
        entry.type, entry.linkname = tarfile.LNKTYPE, links[identity]
        entry.pax_headers = {_TIME: str(status.st_mtime_ns)}
        archive.addfile(entry)
        return
    links[identity] = found.path
    if kind == stat.S_IFLNK:
        entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(found.name, dir_fd=found.parent)
    elif kind == stat.S_IFDIR:
        entry.type = tarfile.DIRTYPE
    elif kind == stat.S_IFIFO:
        entry.type = tarfile.FIFOTYPE
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        entry.type = tarfile.CHRTYPE if kind == stat.S_IFCHR else tarfile.BLKTYPE
        entry.devmajor, entry.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    entry.pax_headers = {_TIME: str(status.st_mtime_ns)} | _xattrs(found)
    if kind != stat.S_IFREG:
        archive.addfile(entry)
        return
    # Not for writing, and without waiting: it was a regular file, but lies in the workload's directory.
    descriptor = os.open(found.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=found.parent)
    with os.fdopen(descriptor, "rb", buffering=0) as content:
        if not os.path.samestat(os.fstat(descriptor), status):
            raise OSError(errno.ESTALE, "it became another file while it was saved", found.path[:80])
        _add_content(archive, entry, content, status.st_size)


def _add_content(archive: tarfile.TarFile, entry: tarfile.TarInfo, content: io.FileIO, size: int) -> None:
    pieces = _data(content.fileno(), size)
    if sum(length for _, length in pieces) == size:
        entry.size = size
        archive.addfile(entry, content)
        return
    # GNU tar's sparse format 1.0: the list of pieces in decimal lines, filled up to a block, then the pieces.
    lines = [len(pieces), *(number for piece in pieces for number in piece)]
    listing = "".join(f"{number}\n" for number in lines).encode()
    listing += bytes(-len(listing) % _BLOCK)
    entry.pax_headers = {
        **entry.pax_headers,
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": entry.name,
        "GNU.sparse.realsize": str(size),
    }
    entry.size = len(listing) + sum(length for _, length in pieces)
    archive.addfile(entry, _Pieces(content, listing, pieces))


class _Pieces(io.RawIOBase):
    """Reads the listing, then the pieces one after the other."""

    def __init__(self, content: io.FileIO, listing: bytes, pieces: list[tuple[int, int]]) -> None:
        self._content = content
        self._listing = io.BytesIO(listing)
        self._pieces = list(reversed(pieces))

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; fewer only at the end."""
        got = self._listing.read(size)
        while len(got) < size and self._pieces:
            offset, length = self._pieces.pop()
            self._content.seek(offset)
            part = self._content.read(min(length, size - len(got)))
            if part and len(part) < length:
                self._pieces.append((offset + len(part), length - len(part)))
            got += part
        return got


def _data(descriptor: int, size: int) -> list[tuple[int, int]]:
    """Where the file has data, as (offset, length); the rest reads as zeros."""
    pieces: list[tuple[int, int]] = []
    position = 0
    while position < size:
        try:
            begin = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:
                break
            if e.errno == errno.EINVAL:  # a file system that doesn't know
                pieces = [(0, size)]
                break
            raise
        position = min(os.lseek(descriptor, begin, os.SEEK_HOLE), size)
        pieces.append((begin, position - begin))
    os.lseek(descriptor, 0, os.SEEK_SET)
    # GNU tar ends the list with an empty piece where the file ends in a hole.
    if not pieces or sum(pieces[-1]) < size:
        pieces.append((size, 0))
    return pieces


def _xattrs(found: _Found) -> dict[str, str]:
    # There is no listxattr relative to a directory; this way through /proc doesn't follow a last symbolic link.
    whole = f"/proc/self/fd/{found.parent}/{found.name}"
    try:
        names = os.listxattr(whole, follow_symlinks=False)
    except OSError:
        return {}
    return {
        _XATTR + name: os.getxattr(whole, name, follow_symlinks=False).decode("utf-8", "surrogateescape")
        for name in names
        if not name.startswith(_SKIPPED_XATTRS)
    }


def _check(entry: tarfile.TarInfo, kinds: dict[str, bytes]) -> None:
    """What `save` never writes: a name that leads out of the directory, one that is there already, a link to what isn't.

    Args:
        kinds: what was laid so far, by its name.
    """
    for name in (entry.name, entry.linkname) if entry.islnk() else (entry.name,):
        parts = name.split("/")
        if name != "." and any(part in ("", ".", "..") for part in parts):
            raise tarfile.ReadError(f"the name {name[:80]!r} leads out of the archive's directory")
        if any(kinds.get("/".join(parts[:depth])) != tarfile.DIRTYPE for depth in range(1, len(parts))):
            raise tarfile.ReadError(f"the name {name[:80]!r} leads through what is no directory of the archive")
    if entry.islnk() and kinds.get(entry.linkname, tarfile.DIRTYPE) == tarfile.DIRTYPE:
        raise tarfile.ReadError(f"the archive links {entry.name[:80]!r} to {entry.linkname[:80]!r}, which isn't there")
    if entry.name in kinds and (entry.name != "." or not entry.isdir()):
        raise tarfile.ReadError(f"the archive has {entry.name[:80]!r} twice")
    kinds[entry.name] = entry.type
