"""A directory's content as one tar file, and back: /dev/shm and the writable layers of a snapshot.

Any tar reads it (pax format; sparse files as GNU tar 1.0 writes them, since shared memory is often made far larger than
it is used). Kept: types, modes, owners, times to the nanosecond, hard links, extended attributes (an overlay's marks are
some), device nodes (an overlay's deletions are some). Sockets are left out: CRIU makes those that somebody listens on.
Entries are sorted, so equal content makes equal bytes.

The directory must stand still meanwhile. Symbolic links in it are never followed: it is the workload's own.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK = 512
_COPY_BYTES = 1 << 20
_XATTR = "SCHILY.xattr."
_TIME = "KYBERNATE.mtime_ns"
_SKIPPED_XATTRS = ("system.", "trusted.overlay.origin", "trusted.overlay.uuid", "trusted.overlay.impure")
"""An overlay's memory of the file system it was made on; a lie on any other, and it does without."""

_NO_FILTER: dict[str, Any] = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
"""Before Python 3.11.4 there are none, and the argument isn't known."""


def save(directory: int, file: BinaryIO) -> int:
    """Write the content of the open directory `directory` as tar into `file`. Returns how many entries there are."""
    count = 0
    links: dict[tuple[int, int], str] = {}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive:
        for path in _walk(directory):
            found = os.stat(path, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISSOCK(found.st_mode):
                continue
            _add(archive, directory=directory, path=path, found=found, links=links)
            count += 1
    return count


def lay(file: BinaryIO, into: str | Path) -> None:
    """Extract what `save` wrote into the existing directory, as the same users by number. Needs root for most of it.

    Raises:
        tarfile.TarError, OSError: damaged, or the file system can't hold it.
    """
    directory = Path(into)
    times: list[tuple[Path, tarfile.TarInfo]] = []
    symbolic: set[str] = set()
    with tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8", copybufsize=_COPY_BYTES) as archive:
        for entry in archive:
            _check(entry, symbolic)
            if entry.name == ".":
                target = directory
            else:
                target = directory / entry.name
                # No filter: it would drop device nodes and set-id bits. The names are checked above.
                archive.extract(entry, directory, numeric_owner=True, **_NO_FILTER)
            # After the owner: chown clears set-id bits and capabilities.
            if entry.name == ".":
                os.chown(target, entry.uid, entry.gid)
            if not entry.issym():
                target.chmod(entry.mode)
            for key, value in entry.pax_headers.items():
                if key.startswith(_XATTR):
                    name, raw = key.removeprefix(_XATTR), value.encode("utf-8", "surrogateescape")
                    os.setxattr(target, name, raw, follow_symlinks=False)
            times.append((target, entry))
    # Deepest last in, first out: setting a file's content changes its directory's time.
    for target, entry in reversed(times):
        nanoseconds = int(entry.pax_headers.get(_TIME, int(entry.mtime * 1e9)))
        with contextlib.suppress(FileNotFoundError):
            os.utime(target, ns=(nanoseconds, nanoseconds), follow_symlinks=False)


def _walk(directory: int, below: str = ".") -> Iterator[str]:
    """Names relative to `directory`, "." first, parents before children, sorted."""
    yield below
    descriptor = os.open(below, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        with os.scandir(descriptor) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    finally:
        os.close(descriptor)
    for name, is_directory in found:
        path = name if below == "." else f"{below}/{name}"
        if is_directory:
            yield from _walk(directory, path)
        else:
            yield path


def _add(
    archive: tarfile.TarFile,
    *,
    directory: int,
    path: str,
    found: os.stat_result,
    links: dict[tuple[int, int], str],
) -> None:
    entry = tarfile.TarInfo(path)
    entry.mode = stat.S_IMODE(found.st_mode)
    entry.uid, entry.gid = found.st_uid, found.st_gid
    entry.mtime = int(found.st_mtime)
    kind = stat.S_IFMT(found.st_mode)
    identity = (found.st_dev, found.st_ino)
    if kind != stat.S_IFDIR and found.st_nlink > 1 and identity in links:
        entry.type, entry.linkname = tarfile.LNKTYPE, links[identity]
        entry.pax_headers = {_TIME: str(found.st_mtime_ns)}
        archive.addfile(entry)
        return
    links[identity] = path
    if kind == stat.S_IFLNK:
        entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(path, dir_fd=directory)
    elif kind == stat.S_IFDIR:
        entry.type = tarfile.DIRTYPE
    elif kind == stat.S_IFIFO:
        entry.type = tarfile.FIFOTYPE
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        entry.type = tarfile.CHRTYPE if kind == stat.S_IFCHR else tarfile.BLKTYPE
        entry.devmajor, entry.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
    entry.pax_headers = {_TIME: str(found.st_mtime_ns)} | _xattrs(directory, path)
    if kind != stat.S_IFREG:
        archive.addfile(entry)
        return
    # Not for writing, and without waiting: it is a regular file by its stat, but lives in the workload's directory.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    with os.fdopen(descriptor, "rb", buffering=0) as content:
        _add_content(archive, entry, content, found.st_size)


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


def _xattrs(directory: int, path: str) -> dict[str, str]:
    # There is no listxattr relative to a directory; this way through /proc doesn't follow a last symbolic link.
    whole = f"/proc/self/fd/{directory}/{path}"
    try:
        names = os.listxattr(whole, follow_symlinks=False)
    except OSError:
        return {}
    return {
        _XATTR + name: os.getxattr(whole, name, follow_symlinks=False).decode("utf-8", "surrogateescape")
        for name in names
        if not name.startswith(_SKIPPED_XATTRS)
    }


def _check(entry: tarfile.TarInfo, symbolic: set[str]) -> None:
    """A name that leads out of the directory was not written by `save`."""
    for name in (entry.name, entry.linkname if entry.islnk() else ""):
        parts = name.split("/")
        above = {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        if name.startswith("/") or ".." in parts or above & symbolic:
            raise tarfile.ReadError(f"the name {name[:80]!r} leads out of the archive's directory")
    if entry.issym():
        symbolic.add(entry.name)
