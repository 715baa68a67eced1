"""The LM head with the draw in it, against the LM head alone: what a draw without filters adds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.draws import VOCAB_SIZE, Draws
from benchmarks.gpu.timing import Launch, copies, median_of, ratio, time_launches
from kernels.gemm import Workspace
from kernels.linear import linear
from kernels.lm_head import HeadWorkspace, lm_head
from kernels.sampling_tables import new_logits

SIZES = (
    ("124M", 768, 1),
    ("124M", 768, 64),
    ("124M", 768, 256),
    ("1.5B", 1600, 1),
    ("1.5B", 1600, 64),
)
_TINY = (("tiny", 64, 2),)


class Head:
    """One copy of the weight and the rows."""

    def __init__(self, width: int, num_rows: int, vocab_size: int, device: torch.device) -> None:
        self.hidden = torch.randn(num_rows, width, device=device).bfloat16()
        weight = torch.randn(vocab_size, width, device=device, dtype=torch.bfloat16)
        self.weight = weight * width**-0.5
        self.logits = new_logits(num_rows, vocab_size, device)
        self.draws = Draws.make(num_rows, vocab_size, device, has_filters=False)
        self.head_workspace = HeadWorkspace.allocate(num_rows, device)
        self.workspace = Workspace.allocate(device, width)

    def fused(self) -> Tensor:
        draws = self.draws
        lm_head(
            self.hidden, self.weight, draws.row_ids, draws.rows, draws.tables,
            self.head_workspace, self.logits, draws.sampled,
        )  # fmt: skip
        return draws.sampled

    def alone(self) -> Tensor:
        linear(self.hidden, self.weight, None, self.logits, workspace=self.workspace)
        return self.logits

    def cublas(self) -> Tensor:
        """bf16 logits: cheaper to write than ours, and too coarse to sample from."""
        return F.linear(self.hidden, self.weight)


def measure(bench: Bench) -> None:
    """figures: <model>.<m>.fused_over_alone; fused_over_alone: the worst."""
    vocab_size = 97 if bench.is_dry else VOCAB_SIZE
    sizes, ratios = bench.sizes(SIZES, _TINY), list[float]()
    for model, width, m in sizes:
        if bench.is_late(f"{model} at {m} rows"):
            break
        num_bytes = 2 * width * vocab_size
        heads = [Head(width, m, vocab_size, bench.device) for _ in range(copies(bench, num_bytes))]
        bench.agree(f"{model}.{m}.F.linear", heads[0].alone(), heads[0].cublas(), 0.06)
        samples = time_launches(
            bench,
            {
                "fused": [head.fused for head in heads],
                "alone": [head.alone for head in heads],
                "cuBLAS": [head.cublas for head in heads],
            },
        )
        seconds = median_of(samples, "fused")
        over, share = ratio(samples, "fused", "alone"), num_bytes / seconds / bench.limit("read")
        over_cublas = ratio(samples, "fused", "cuBLAS")
        ratios.append(over)
        key = f"{model}.{m}"
        bench.samples[key] = samples.get("fused", [])
        bench.figure(f"{key}.us", seconds * 1e6)
        bench.figure(f"{key}.fused_over_alone", over)
        bench.figure(f"{key}.fused_over_cublas", over_cublas)
        bench.figure(f"{key}.share_of_read", share)
        bench.row(
            f"{model}, {m} rows", "us", seconds * 1e6, "of the head alone", over, "of cuBLAS alone",
            over_cublas, "share of B", share,
        )  # fmt: skip
        bench.free()
    bench.worst("fused_over_alone", ratios, len(sizes), max)


def launches(device: torch.device) -> dict[str, Launch]:
    """For compiling ahead: both, at every size."""

    def launch(width: int, m: int) -> None:
        head = Head(width, m, VOCAB_SIZE, device)
        head.fused()
        head.alone()

    return {
        f"lm_head {model}, {m} rows": lambda width=width, m=m: launch(width, m)  # type: ignore[misc]
        for model, width, m in SIZES
    }
