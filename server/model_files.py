"""The only way to a file of a model directory: regular files alone, opened once, read within bounds.

Knows nothing of what is in them. Nothing is mapped: a file that is cut while it is read is an error, where a
page of a map that is gone would be SIGBUS.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import weakref
from pathlib import Path

from server.errors import ModelError
from server.model_manifest import Manifest, read_manifest

# O_NONBLOCK: a FIFO would wait for its writer. O_NOCTTY: a terminal would become ours.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_CHUNK_BYTES = 1 << 20
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class ModelFile:
    """One regular file, open. Its reads share no position, so threads may share it."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError unless `path` itself is a regular file that can be read."""
        self.path = path
        try:
            # Before it is opened, too: that alone may move a device.
            _check_regular(path, os.lstat(path))
            self._fd = os.open(path, _FLAGS)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _refuse_link(path) from None
            raise ModelError(f"{path} cannot be read: {error.strerror}.") from None
        self.close = weakref.finalize(self, os.close, self._fd)
        status = os.fstat(self._fd)
        _check_regular(path, status)  # it may be another one by now
        self.size = status.st_size
        self._modified_ns = status.st_mtime_ns
        # They change with every change of the content: no program can set the time of the last of any kind.
        self.changed_ns = status.st_ctime_ns
        self.facts = (
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, self.changed_ns
        )  # fmt: skip

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Exactly so many. Raises ModelError where the file ends before."""
        data = bytearray(num_bytes)
        self.read_into(memoryview(data), offset)
        return bytes(data)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer`, which is of bytes. Lets other threads run meanwhile."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise ModelError(f"{self.path} cannot be read: {error.strerror}.") from None
            if not count:
                raise ModelError(f"{self.path} was cut short while it was being read.")
            done += count

    def sha256(self) -> str:
        """Hex digest of the whole content."""
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(_CHUNK_BYTES, self.size)))
        for offset in range(0, self.size, _CHUNK_BYTES):
            piece = buffer[: self.size - offset]
            self.read_into(piece, offset)
            digest.update(piece)
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Raises ModelError if the file was written to or cut since it was opened. It may have lost its name:
        that is how a file is replaced while others still read it."""
        status = os.fstat(self._fd)
        if (status.st_size, status.st_mtime_ns) != (self.size, self._modified_ns):
            raise ModelError(f"{self.path} was changed while it was being read: start again.")


class ModelFiles:
    """A model directory. The same name is the same open file for as long as this lives, so what is hashed is
    what is used, also if another file takes the name."""

    def __init__(self, directory: str | Path, manifest: str | Path = "") -> None:
        """`manifest`: a path; where given, no file that it does not list is opened, and each must match.
        Raises ModelError."""
        self.directory = Path(directory)
        self._manifest: Manifest | None = None
        if manifest:
            self._manifest = read_manifest(Path(manifest))
            self._manifest.check_all_exist(self.directory)
        self._opened: dict[str, ModelFile] = {}
        self._matching: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def has_manifest(self) -> bool:
        return self._manifest is not None

    def has(self, name: str) -> bool:
        """Whether anything has the name; it may still be refused by `open`."""
        return os.path.lexists(self.directory / name)

    def names(self, *suffixes: str) -> list[str]:
        """Sorted names of whatever is there, but for those that no terminal should be shown."""
        try:
            found = sorted(os.listdir(self.directory))
        except OSError as error:
            raise ModelError(f"{self.directory} cannot be read: {error.strerror}.") from None
        return [name for name in found if name.endswith(suffixes) and name.isprintable()]

    def usable_names(self, *suffixes: str) -> list[str]:
        """Of those: what `open` would not refuse for its kind, or because no manifest lists it."""
        listed = None if self._manifest is None else self._manifest.digests
        return [
            name
            for name in self.names(*suffixes)
            if _is_regular(self.directory / name) and (listed is None or name in listed)
        ]

    def open(self, name: str) -> ModelFile:
        """Raises ModelError. Its content has not been compared with the manifest; see `check`."""
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ModelError(
                f"{name[:200]!r} is not the name of a file in {self.directory}; no other is opened."
            )
        with self._lock:
            file = self._opened.get(name)
            if file is None:
                if self._manifest is not None:
                    self._manifest.digest(self.directory / name)
                file = self._opened[name] = ModelFile(self.directory / name)
            return file

    def read(self, name: str, max_bytes: int) -> bytes:
        """The whole file, compared with the manifest. Larger ones are refused unread."""
        file = self.open(name)
        if file.size > max_bytes:
            raise ModelError(f"{file.path} is larger than {max_bytes} bytes.")
        data = file.read(0, file.size)
        if self.has_manifest:
            self.check(name, hashlib.sha256(data).hexdigest())
        return data

    def check(self, name: str, digest: str) -> None:
        """Compare the digest of what was read with the manifest, where there is one."""
        if self._manifest is not None:
            self._manifest.check(self.directory / name, digest)
            self._matching[name] = digest

    def digest(self, name: str) -> str:
        """Of the content, compared with the manifest."""
        found = self._matching.get(name)
        if found is None:
            found = self.open(name).sha256()
            self.check(name, found)
        return found

    def check_unchanged(self) -> None:
        """Raises ModelError if a file that was opened is not what it was then."""
        with self._lock:
            for file in self._opened.values():
                file.check_unchanged()


def as_model_files(model: ModelFiles | str | Path) -> ModelFiles:
    """A path is a directory without a manifest."""
    return model if isinstance(model, ModelFiles) else ModelFiles(model)


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:  # it has gone since it was listed
        return False


def _check_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise _refuse_link(path)
    if not stat.S_ISREG(status.st_mode):
        kind = next((kind for is_kind, kind in _KINDS if is_kind(status.st_mode)), "no file")
        raise ModelError(f"{path} is {kind}; only regular files of a model directory are opened.")


def _refuse_link(path: Path) -> ModelError:
    return ModelError(
        f"{path} is a symbolic link, which is not followed: --model takes a directory of plain files. "
        "`hf download REPOSITORY --local-dir DIRECTORY` makes one, and so does `cp -rL OLD NEW`."
    )
