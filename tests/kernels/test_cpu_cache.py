"""Compiled kernels are found again only by the sources they were compiled from."""

from __future__ import annotations

from pathlib import Path

import kernels.cpu
from kernels.cpu import sources_digest
from kernels.cpu.order import argmax
from kernels.cpu.sampler import gumbel_noise


def test_the_digest_follows_names_and_contents(tmp_path: Path) -> None:
    found = [sources_digest(tmp_path)]
    (tmp_path / "a.py").write_text("x = 1\n")
    found.append(sources_digest(tmp_path))
    (tmp_path / "a.py").write_text("x = 2\n")
    found.append(sources_digest(tmp_path))
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    found.append(sources_digest(tmp_path))
    assert len(set(found)) == 4
    (tmp_path / "notes.txt").write_text("not compiled")
    assert sources_digest(tmp_path) == found[-1]


def test_every_kernel_is_cached_under_the_digest() -> None:
    digest = sources_digest(Path(kernels.cpu.__file__).parent)
    for kernel in (argmax, gumbel_noise):
        assert digest in kernel.stats.cache_path
