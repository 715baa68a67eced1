"""Residual add + LayerNorm in one pass, against a copy of as many bytes and torch's own two calls."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.timing import Launch, copies, median_of, ratio, time_launches
from kernels.gemm import Norm
from kernels.layer_norm import layer_norm

SIZES = ((16384, 768), (16384, 1600))  # rows, columns: over 150 MB moved
_TINY = ((3, 96),)
_BYTES = 4 + 4 + 2 + 2  # of an element: residual in and out, what is added, what comes out


class Rows:
    """One copy of the inputs."""

    def __init__(self, num_tokens: int, width: int, device: torch.device) -> None:
        self.residual = torch.randn(num_tokens, width, device=device)
        # Small, so that the residual is still of its size after thousands of additions.
        self.x = (torch.randn(num_tokens, width, device=device) * 1e-3).bfloat16()
        self.out = torch.empty_like(self.x)
        self.weight, self.bias = torch.randn(2, width, device=device)

    def ours(self) -> None:
        norm = Norm(None, self.weight, self.bias, 1e-5)
        layer_norm(self.residual, norm, self.out, x=self.x)

    def torchs(self) -> None:
        self.residual.add_(self.x)
        shape = self.weight.shape
        self.out.copy_(F.layer_norm(self.residual, shape, self.weight, self.bias, 1e-5))


def measure(bench: Bench) -> None:
    """figures: share_of_copy, the worst over the sizes: a copy's time / ours."""
    sizes, shares = bench.sizes(SIZES, _TINY), list[float]()
    for num_tokens, width in sizes:
        num_bytes = num_tokens * width * _BYTES
        rows = [Rows(num_tokens, width, bench.device) for _ in range(copies(bench, num_bytes))]
        pairs = [torch.empty(2, num_bytes // 8, device=bench.device) for _ in rows]
        samples = time_launches(
            bench,
            {
                "ours": [each.ours for each in rows],
                "copy": [partial(pair[0].copy_, pair[1]) for pair in pairs],
                "torch": [each.torchs for each in rows],
            },
        )
        share = ratio(samples, "copy", "ours")
        shares.append(share)
        seconds = median_of(samples, "ours")
        bench.samples[f"{num_tokens}x{width}"] = samples.get("ours", [])
        bench.figure(f"{width}.us", seconds * 1e6)
        bench.figure(f"{width}.share_of_copy", share)
        bench.figure(f"{width}.torch_over_ours", ratio(samples, "torch", "ours"))
        bench.row(
            f"{num_tokens} x {width}", "us", seconds * 1e6, "of a copy", share,
            "torch, times our time", ratio(samples, "torch", "ours"),
        )  # fmt: skip
        bench.free()
    bench.worst("share_of_copy", shares, len(sizes), min)


def launches(device: torch.device) -> dict[str, Launch]:
    """For compiling ahead: one launch of each size."""
    return {f"norm {size}": lambda size=size: Rows(*size, device).ours() for size in SIZES}  # type: ignore[misc]
