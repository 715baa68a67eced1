"""The name of everything that a completion's bytes depend on besides the request.

Equal fingerprint, equal seed, equal request: equal bytes. Threads, batch limits and block size are
left out, because they change none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

_PACKAGES = ("torch", "triton", "numba", "llvmlite", "numpy", "llguidance")
_ROOT = Path(__file__).resolve().parents[2]
_DECIDING_ROOMS = (
    "kernels",
    "server/model",
    "server/runner",
    "server/tokenizer",
    "server/grammar",
)
# Everything of a model directory that may be read: weights, config and tokenizer.
_MODEL_SUFFIXES = (".safetensors", ".json", ".tiktoken", ".txt")
_READ_BYTES = 1 << 20


def system_fingerprint(
    model_dir: Path,
    dtype: str,
    never_sampled_ids: Iterable[int],
    processor: dict[str, str] | None = None,
) -> str:
    """`fp_` and 16 hex digits. Reads every weight file whole: 0.7 s for a GB on a CPU with SHA extensions.

    `processor`: what tells one kind of GPU from another; None: that of `host_cpu`.
    """
    facts = {
        "model": {path.name: file_sha256(path) for path in _model_files(model_dir)},
        "dtype": dtype,
        "never_sampled": sorted(never_sampled_ids),
        "processor": host_cpu() if processor is None else processor,
        "versions": _versions(),
        "sources": _sources_sha256(),
    }
    return "fp_" + _sha256_of(facts)[:16]


def host_cpu() -> dict[str, str]:
    """What LLVM compiles our CPU kernels for: the choice of vector width and instructions."""
    return {
        "name": llvm.get_host_cpu_name(),
        "features": llvm.get_host_cpu_features().flatten(),
    }


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content. Lets other threads run meanwhile."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _sha256_of(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _model_files(model_dir: Path) -> list[Path]:
    return sorted(path for path in model_dir.iterdir() if path.suffix in _MODEL_SUFFIXES)


def _versions() -> dict[str, str]:
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed[package] = ""
    return installed


def _sources_sha256(root: Path = _ROOT) -> str:
    """Of our own code that decides bytes."""
    paths = [path for room in _DECIDING_ROOMS for path in (root / room).rglob("*.py")]
    return _sha256_of({str(path.relative_to(root)): file_sha256(path) for path in paths})
