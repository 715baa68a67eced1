"""Prefill attention, causal: against torch's flash and cuDNN back ends, and as a rate."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.bench import Bench, sentence
from benchmarks.gpu.paged import PagedKV, Sequences
from benchmarks.gpu.timing import Launch, median_of, ratio, time_launches
from kernels.prefill_attention import prefill_attention

SIZES = (
    Sequences("2k x 4, 12 heads of 64", (2048,) * 4),
    Sequences("4k x 2, 12 heads of 64", (4096,) * 2),
    Sequences("8k x 1, 12 heads of 64", (8192,)),
    Sequences("2k x 4, 16 heads of 128", (2048,) * 4, 16, 16, 128),
    Sequences("8k x 1, 16 heads of 128", (8192,), 16, 16, 128),
)
_TINY = (Sequences("tiny", (20, 20), 2, 2, 16),)
_TOLERANCE = 0.05  # of values around 1 in bf16, the first rows' up to 3
_BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}


class Ours:
    """Our kernel over a paged cache of whole prompts; calling it is one launch."""

    def __init__(self, size: Sequences, device: torch.device) -> None:
        num_tokens, width = sum(size.seq_lens), size.num_heads * size.head_dim
        self.kv = PagedKV.random(size, device)
        self.q = torch.randn(num_tokens, width, device=device, dtype=torch.bfloat16)
        self.out = torch.empty_like(self.q)
        starts = torch.tensor([0, *size.seq_lens], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        self._starts = starts.to(device)
        self._scale = size.scale

    def __call__(self) -> Tensor:
        kv = self.kv
        prefill_attention(
            self.q, kv.k, kv.v, self._starts, kv.seq_lens, kv.rows, kv.tables, self._scale, self.out
        )
        return self.out


def sdpa(size: Sequences, ours: Ours, backend: SDPBackend) -> Launch:
    """On the same q, K and V, each [num_rows, num_heads, length, head_dim], contiguous."""
    rows, heads, width = len(size.seq_lens), size.num_heads, size.head_dim
    k, v = ours.kv.padded()
    q = ours.q.view(rows, -1, heads, width).transpose(1, 2).contiguous()

    def launch() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return launch


def _key(size: Sequences) -> str:
    return size.name.replace(",", "").replace(" ", "_")


def flops(size: Sequences) -> float:
    """Of the products q k and p v, over what a causal mask leaves."""
    return 4 * size.num_heads * size.head_dim * sum(n * (n + 1) / 2 for n in size.seq_lens)


def measure(bench: Bench) -> None:
    """figures: <size>.over_cudnn and ..over_flash: the rival's time / ours."""
    sizes = bench.sizes(SIZES, _TINY)
    narrow: list[float] = []  # heads of 64
    for size in sizes:
        if bench.is_late(size.name, 6):
            continue
        ours = Ours(size, bench.device)
        cases: dict[str, list[Launch]] = {"ours": [ours]}
        for name, backend in _BACKENDS.items():
            _add_rival(bench, size, ours, name, backend, cases)
        samples = time_launches(bench, cases)
        key = _key(size)
        rate = flops(size) / median_of(samples, "ours")
        bench.samples[key] = samples.get("ours", [])
        bench.figure(f"{key}.flops", rate)
        found = {name: ratio(samples, name, "ours") for name in _BACKENDS}
        for name, speedup in found.items():
            bench.figure(f"{key}.over_{name.lower()}", speedup)
        if size.head_dim != 128:
            narrow.append(found["cuDNN"])
        bench.row(
            size.name, "TFLOP/s", rate / 1e12, "of cuDNN", found["cuDNN"], "of flash", found["flash"]
        )  # fmt: skip
        bench.free()
    bench.worst("worst_over_cudnn", narrow, sum(s.head_dim != 128 for s in sizes), min)


def _add_rival(
    bench: Bench, size: Sequences, ours: Ours, name: str, backend: SDPBackend, cases: dict[str, list[Launch]]
) -> None:  # fmt: skip
    try:
        launch = sdpa(size, ours, backend)
        out: Tensor = launch()  # type: ignore[assignment]
        theirs = out.transpose(1, 2).reshape(len(ours.q), -1)
        bench.agree(f"{_key(size)}.{name.lower()}", ours(), theirs, _TOLERANCE)
        cases[name] = [launch]
    except Exception as error:
        bench.note(f"{name} did not run at {size.name} ({sentence(error)}).")


def launches(device: torch.device) -> dict[str, Launch]:
    """For compiling ahead: one launch of each size."""
    return {f"prefill {size.name}": partial(_launch, size, device) for size in SIZES}


def _launch(size: Sequences, device: torch.device) -> None:
    Ours(size, device)()
