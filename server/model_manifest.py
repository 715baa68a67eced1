"""Which files of a model directory are to be trusted: a list of SHA-256 digests as `sha256sum` prints it.

Owns the format. Knows neither the model directory nor what is in its files.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from server.errors import ModelError

MAX_MANIFEST_BYTES = 1 << 20
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?([^/]+)")


@dataclass(frozen=True, slots=True)
class Manifest:
    """`digests`: lower-case hex by the file's name."""

    path: Path
    digests: dict[str, str] = field(default_factory=dict)

    def check(self, file: Path, digest: str) -> None:
        """Raises ModelError unless `digest` is the one listed for the name of `file`."""
        if digest != self.digest(file):
            raise ModelError(
                f"{file} is not the file that the manifest {self.path} lists: its SHA-256 is {digest}."
            )

    def digest(self, file: Path) -> str:
        """Raises ModelError where none is listed."""
        found = self.digests.get(file.name)
        if found is None:
            raise ModelError(f"{file} is not listed in the manifest {self.path}.")
        return found

    def check_all_exist(self, directory: Path) -> None:
        for name in self.digests:
            if not os.path.lexists(directory / name):
                raise ModelError(
                    f"{directory / name} is missing; the manifest {self.path} lists it."
                )


def read_manifest(path: Path) -> Manifest:
    """Raises ModelError. The file may be a symbolic link: it is the operator's own."""
    digests: dict[str, str] = {}
    try:
        lines = _read(path).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise ModelError(f"--model-manifest {path} is not UTF-8.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line)
        if found is None or found[2] in (".", ".."):
            raise ModelError(
                f"--model-manifest {path}: line {number} is not a SHA-256 and the name of a file of the "
                "model directory, as `sha256sum *` prints them there."
            )
        if found[2] in digests:
            raise ModelError(f"--model-manifest {path}: line {number} names {found[2]!r} again.")
        digests[found[2]] = found[1].lower()
    return Manifest(path, digests)


def _read(path: Path) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ModelError(f"--model-manifest {path} is not a regular file.")
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ModelError(f"--model-manifest {path} cannot be read: {error.strerror}.") from None
    if len(data) > MAX_MANIFEST_BYTES:
        raise ModelError(f"--model-manifest {path} is larger than {MAX_MANIFEST_BYTES} bytes.")
    return data
