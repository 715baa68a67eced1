"""Matrix products of a layer for few and many rows: against cuBLAS, the limits, and the price of invariance.

cuBLAS picks a kernel by the number of rows, so its bits follow the batch: it is the fastest choice that is
not invariant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.timing import Launch, copies, median_of, ratio, time_launches
from kernels.gemm import Norm, Workspace
from kernels.linear import linear
from kernels.mlp import mlp
from kernels.row_stats import GROUP

WIDTHS = {"124M": 768, "355M": 1024, "774M": 1280, "1.5B": 1600}
ROWS = (1, 16, 64, 256, 1024, 4096)
_MORE_ROWS = (2, 8, 17, 32, 65, 128, 512, 2048)
_FEW = 256  # up to so many rows the weight's stream decides: a decode step
_TOLERANCE = 0.06


@dataclass(frozen=True, slots=True)
class Product:
    """x [m, k] @ weight [n, k].T + bias, in bf16."""

    name: str
    n: int
    k: int

    def bytes(self, m: int) -> int:
        return 2 * (self.n * self.k + m * (self.n + self.k)) + 4 * self.n

    def flops(self, m: int) -> int:
        return 2 * m * self.n * self.k


def layer(width: int) -> tuple[Product, ...]:
    """The four of a GPT-2 layer."""
    return (
        Product("c_attn", 3 * width, width),
        Product("attn.c_proj", width, width),
        Product("c_fc", 4 * width, width),
        Product("mlp.c_proj", width, 4 * width),
    )


class Inputs:
    """One copy."""

    def __init__(self, product: Product, m: int, device: torch.device) -> None:
        n, k = product.n, product.k
        self.x = torch.randn(m, k, device=device).bfloat16()
        self.weight = (torch.randn(n, k, device=device) * k**-0.5).bfloat16()
        self.bias = torch.randn(n, device=device)
        self.bias_bf16 = self.bias.bfloat16()
        self.out = torch.empty(m, n, device=device, dtype=torch.bfloat16)

    def ours(self, workspace: Workspace) -> Tensor:
        linear(self.x, self.weight, self.bias, self.out, workspace=workspace)
        return self.out

    def cublas(self) -> Tensor:
        return F.linear(self.x, self.weight, self.bias_bf16)


def measure(bench: Bench) -> None:
    models = {"tiny": 64} if bench.is_dry else {name: WIDTHS[name] for name in ("124M", "1.5B")}
    _measure(bench, models, bench.sizes(ROWS, (1, 65)))
    for name, width in models.items():
        for m in bench.sizes((1, 64, 256), (2,)):
            if not bench.is_late(f"the MLP of {name} at {m} rows"):
                _measure_mlp(bench, name, width, m)


def measure_more(bench: Bench) -> None:
    models = {"tiny": 64} if bench.is_dry else WIDTHS
    _measure(bench, models, bench.sizes(_MORE_ROWS, (1,)))


def _measure(bench: Bench, models: dict[str, int], rows: Sequence[int]) -> None:
    """figures: <model>.<m>.price: our time / cuBLAS's, all of a layer; price_of_invariance: the worst."""
    prices: list[float] = []
    for name, width in models.items():
        for m in rows:
            if bench.is_late(f"{name} at {m} rows", 5):
                return
            price = _measure_layer(bench, name, width, m)
            if m <= _FEW:
                prices.append(price)
    num_few = len(models) * sum(m <= _FEW for m in rows)
    bench.worst("price_of_invariance", prices, num_few, max)


def _measure_layer(bench: Bench, model: str, width: int, m: int) -> float:
    ours, cublas, num_bytes, flops = 0.0, 0.0, 0, 0
    for product in layer(width):
        samples = _measure_product(bench, product, m)
        key = f"{model}.{m}.{product.name}"
        bench.samples[key] = samples.get("ours", [])
        bench.figure(f"{key}.us", median_of(samples, "ours") * 1e6)
        bench.figure(f"{key}.over_cublas", ratio(samples, "ours", "cuBLAS"))
        ours += median_of(samples, "ours")
        cublas += median_of(samples, "cuBLAS")
        num_bytes += product.bytes(m)
        flops += product.flops(m)
    read, matmul = num_bytes / ours / bench.limit("read"), flops / ours / bench.limit("matmul")
    bench.figure(f"{model}.{m}.price", ours / cublas)
    bench.figure(f"{model}.{m}.share_of_read", read)
    bench.figure(f"{model}.{m}.share_of_matmul", matmul)
    bench.row(
        f"{model}, {m} rows, a layer's four", "us", ours * 1e6, "of cuBLAS' time", ours / cublas,
        "share of B", read, "of matmul", matmul,
    )  # fmt: skip
    return ours / cublas


def _measure_product(bench: Bench, product: Product, m: int) -> dict[str, list[float]]:
    workspace = Workspace.allocate(bench.device, product.k)
    inputs = [Inputs(product, m, bench.device) for _ in range(copies(bench, product.bytes(m)))]
    what = f"F.linear.{product.name}.{product.k}.{m}"
    bench.agree(what, inputs[0].ours(workspace), inputs[0].cublas(), _TOLERANCE)
    return time_launches(
        bench,
        {
            "ours": [lambda each=each: each.ours(workspace) for each in inputs],  # type: ignore[misc]
            "cuBLAS": [each.cublas for each in inputs],
        },
        rounds=5,
    )


class Mlp:
    """LayerNorm, c_fc, GELU, c_proj and the residual, on one copy of a layer's weights."""

    def __init__(self, width: int, m: int, device: torch.device) -> None:
        self.residual = torch.randn(m, width, device=device)
        self.norm = Norm(
            torch.zeros(m, -(-width // GROUP.value), 2, device=device),
            torch.ones(width, device=device),
            torch.zeros(width, device=device),
            1e-5,
        )
        self.fc, self.proj = (Inputs(p, m, device) for p in layer(width)[2:])

    def ours(self, workspace: Workspace) -> None:
        assert self.norm.stats is not None
        mlp(
            self.residual, self.norm, self.fc.weight, self.fc.bias, self.proj.weight, self.proj.bias,
            self.fc.out, epilogue="gelu_tanh", stats=self.norm.stats, workspace=workspace,
        )  # fmt: skip

    def torchs(self) -> Tensor:
        norm, fc, proj = self.norm, self.fc, self.proj
        x = F.layer_norm(
            self.residual, norm.weight.shape, norm.weight, norm.bias, norm.eps
        ).bfloat16()
        inner = F.gelu(F.linear(x, fc.weight, fc.bias_bf16), approximate="tanh")
        return self.residual.add_(F.linear(inner, proj.weight, proj.bias_bf16))


def _measure_mlp(bench: Bench, model: str, width: int, m: int) -> None:
    workspace = Workspace.allocate(bench.device, 4 * width)
    rows = [Mlp(width, m, bench.device) for _ in range(copies(bench, 16 * width * width))]
    samples = time_launches(
        bench,
        {
            "ours": [lambda each=each: each.ours(workspace) for each in rows],  # type: ignore[misc]
            "torch": [each.torchs for each in rows],
        },
        rounds=5,
    )
    seconds, over = median_of(samples, "ours"), ratio(samples, "ours", "torch")
    share = 16 * width * width / seconds / bench.limit("read")
    bench.figure(f"{model}.{m}.mlp.over_torch", over)
    bench.figure(f"{model}.{m}.mlp.share_of_read", share)
    bench.row(f"{model}, {m} rows, MLP in one launch", "us", seconds * 1e6, "of torch's time", over,
              "share of B", share)  # fmt: skip


def launches(device: torch.device) -> dict[str, Launch]:
    """For compiling ahead: every product and the MLPs."""
    return dict(_launches(device))


def _launches(device: torch.device) -> Iterator[tuple[str, Launch]]:
    for model in ("124M", "1.5B"):
        for m in ROWS:
            yield f"linear {model}, {m} rows", lambda m=m, model=model: _launch(model, m, device)  # type: ignore[misc]


def _launch(model: str, m: int, device: torch.device) -> None:
    width = WIDTHS[model]
    workspace = Workspace.allocate(device, 4 * width)
    for product in layer(width):
        Inputs(product, m, device).ours(workspace)
    if m <= _FEW:
        Mlp(width, m, device).ours(workspace)
