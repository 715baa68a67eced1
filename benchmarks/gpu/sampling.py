"""The sampler against sampling by a sort in torch, on the same logits."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.draws import TEMPERATURE, TOP_K, TOP_P, VOCAB_SIZE, Draws
from benchmarks.gpu.timing import Launch, copies, median_of, ratio, time_launches
from kernels.sampler import sample
from kernels.sampling_tables import new_logits

_ROWS = 256


class Ours:
    """The kernel on its own logits; calling it is one launch."""

    def __init__(
        self, num_rows: int, vocab_size: int, device: torch.device, *, has_filters: bool
    ) -> None:
        self.draws = Draws.make(num_rows, vocab_size, device, has_filters=has_filters)
        self.logits = new_logits(num_rows, vocab_size, device)
        # Spread like a language model's: the best few ids hold most of the weight.
        self.logits.copy_(torch.randn(num_rows, vocab_size, device=device) * 3)

    def __call__(self) -> Tensor:
        draws = self.draws
        sample(self.logits, draws.row_ids, draws.rows, draws.tables, draws.scratch, draws.sampled)
        return draws.sampled


def torch_sort(logits: Tensor) -> Tensor:
    """Temperature, top-k, top-p and a draw, the usual way. int64 [num_rows]."""
    ordered, ids = torch.sort(logits / TEMPERATURE, dim=-1, descending=True)
    ordered[:, TOP_K:] = -torch.inf
    probabilities = torch.softmax(ordered, dim=-1)
    before = torch.cumsum(probabilities, dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before >= TOP_P, 0.0)
    return ids.gather(1, _race(probabilities))[:, 0]


def torch_simple(logits: Tensor) -> Tensor:
    """Temperature and a draw. int64 [num_rows]."""
    return _race(torch.softmax(logits / TEMPERATURE, dim=-1))[:, 0]


def _race(probabilities: Tensor) -> Tensor:
    """An id each, drawn by exponential clocks: `multinomial` would wait for the host."""
    clocks = torch.empty_like(probabilities).exponential_()
    return (probabilities / clocks).argmax(dim=-1, keepdim=True)


def measure(bench: Bench) -> None:
    """figures: top_k_top_p.speedup (torch's time / ours), simple.speedup, ..share_of_read."""
    num_rows, vocab_size = (2, 97) if bench.is_dry else (_ROWS, VOCAB_SIZE)
    num_bytes = 4 * num_rows * vocab_size
    for name, rival in (("top_k_top_p", torch_sort), ("simple", torch_simple)):
        has_filters = rival is torch_sort
        ours = [
            Ours(num_rows, vocab_size, bench.device, has_filters=has_filters)
            for _ in range(copies(bench, num_bytes))
        ]
        if has_filters:
            _check(bench, ours[0])
        cases: dict[str, list[Launch]] = {
            "ours": list(ours),
            "torch": [partial(rival, each.logits) for each in ours],
        }
        samples = time_launches(bench, cases)
        seconds, speedup = median_of(samples, "ours"), ratio(samples, "torch", "ours")
        share = num_bytes / seconds / bench.limit("read")
        bench.samples[name] = samples.get("ours", [])
        bench.figure(f"{name}.us", seconds * 1e6)
        bench.figure(f"{name}.speedup", speedup)
        bench.figure(f"{name}.share_of_read", share)
        bench.row(
            name.replace("_", " "), "us", seconds * 1e6, "torch, times our time", speedup,
            "share of B", share,
        )  # fmt: skip
        bench.free()


def _check(bench: Bench, ours: Ours) -> None:
    """What is drawn is among the ids that top-k leaves."""
    kept = torch.topk(ours.logits, TOP_K, dim=-1).values[:, -1]
    drawn = ours.logits.gather(1, ours()[:, None])[:, 0]
    if not bool((drawn >= kept).all()):
        bench.note("WRONG: the sampler drew an id that top-k leaves out.")


def launches(device: torch.device) -> dict[str, Launch]:
    """For compiling ahead."""
    return {"sampler": lambda: Ours(_ROWS, VOCAB_SIZE, device, has_filters=True)()}
