"""The name of everything that a completion's bytes depend on besides the request.

Equal fingerprint, equal seed, equal request: equal bytes. Threads, batch limits and block size are
left out, because they change none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba

import kernels.cpu  # noqa: F401  (gives numba its cache directory)
from kernels.cpu.kinds import BF16_KINDS
from server.model.checkpoint import weight_file_names
from server.model_files import ModelFile, ModelFiles, as_model_files

_PACKAGES = ("torch", "triton", "numba", "llvmlite", "numpy", "llguidance")
_ROOT = Path(__file__).resolve().parents[2]
_DECIDING_ROOMS = (
    "kernels",
    "server/model",
    "server/runner",
    "server/tokenizer",
    "server/grammar",
)
# What the tokenizer and the model's config are read from, whatever it is that is there.
_SETTINGS = ("config.json", "special_tokens_map.json", "tokenizer_config.json")
_SETTLED_NS = 2_000_000_000
_KEPT_DIGESTS = Path(numba.config.CACHE_DIR) / "model-digests.json"  # type: ignore[attr-defined]


def system_fingerprint(
    model: ModelFiles | str | Path,
    dtype: str,
    never_sampled_ids: Iterable[int],
    processor: dict[str, str] | None = None,
) -> str:
    """`fp_` and 16 hex digits. Reads every weight file whole, 0.7 s for a GB on a CPU with SHA extensions;
    the next start finds the digests of files that have not changed since.

    `processor`: what tells one kind of GPU from another; None: that of `host_cpu`.
    """
    facts = {
        "model": _model_digests(as_model_files(model)),
        "dtype": dtype,
        "never_sampled": sorted(never_sampled_ids),
        "processor": host_cpu() if processor is None else processor,
        "versions": _versions(),
        "sources": _sources_sha256(),
    }
    return "fp_" + _sha256_of(facts)[:16]


def host_cpu() -> dict[str, str]:
    """What LLVM compiles our CPU kernels for, and what the operating system lets them use."""
    return {
        "name": llvm.get_host_cpu_name(),
        "features": llvm.get_host_cpu_features().flatten(),
        "bf16": BF16_KINDS[0].name,
    }


def _model_digests(files: ModelFiles) -> dict[str, str]:
    """Of the open files that the weights are read from, so of what is served. What a manifest vouches for is
    hashed each time: whoever can write to our cache could write there that a file has not changed."""
    read = {*_SETTINGS, *_tokenizer_names(files), *weight_file_names(files)}
    names = [
        name
        for name in files.usable_names(".safetensors", ".json", ".tiktoken", ".txt")
        if name in read
    ]
    if files.has_manifest:
        return {name: files.digest(name) for name in names}
    return kept_digests([files.open(name) for name in names], _KEPT_DIGESTS)


def _tokenizer_names(files: ModelFiles) -> list[str]:
    """As server/tokenizer/files.py chooses. What else lies there may be of any size and number."""
    if files.has("tokenizer.json"):
        return ["tokenizer.json"]
    return ["vocab.json", "merges.txt"] if files.has("vocab.json") else files.names(".tiktoken")


def kept_digests(files: list[ModelFile], kept: Path) -> dict[str, str]:
    """By name, of their contents. A file is hashed again when anything that the file system says of it has
    changed: also the time of its last change of any kind, which no program can set."""
    old = _read_digests(kept)
    new, is_kept = {}, {}
    for file in files:
        name = f"{file.path.resolve()} {file.facts}"
        new[name] = old.get(name) or file.sha256()
        # The clock of a file system is coarse: a change right behind this one might have the same time.
        is_kept[name] = time.time_ns() - file.changed_ns > _SETTLED_NS
    settled = {name: digest for name, digest in new.items() if is_kept[name]}
    if settled != old:
        _write_digests(kept, settled)
    return {file.path.name: digest for file, digest in zip(files, new.values(), strict=True)}


def _read_digests(kept: Path) -> dict[str, str]:
    try:
        found = json.loads(kept.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_digests(kept: Path, digests: dict[str, str]) -> None:
    """Whole or not at all; a directory that is not writable costs the next start a little time."""
    part = kept.with_name(f"{kept.name}.{os.getpid()}")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(digests))
        part.replace(kept)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()


def _sha256_of(facts: Any) -> str:
    return _sha256(json.dumps(facts, sort_keys=True).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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
    return _sha256_of({str(path.relative_to(root)): _sha256(path.read_bytes()) for path in paths})
