"""What this GPU can do at best, in this run: everything else is told as a share of it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.timing import Launch, median_of, time_launches
from kernels.pdl import launch_dependents, use_pdl, wait

_READ_BYTES = 8_000_000_000
_COPY_BYTES = 4_000_000_000
_MATMUL = 8192
# What a program reads at once, its warps, and programs an SM (0: one for each block of the input).
READERS = ((4096, 8, 0), (8192, 8, 0), (4096, 4, 8), (8192, 8, 4))


@triton.jit
def _sum_kernel(
    x_ptr,  # fp32 [num_elements]
    out_ptr,  # fp32 [programs]
    num_elements,
    BLOCK: tl.constexpr,
):
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    begin = tl.program_id(0).to(tl.int64) * BLOCK
    total = tl.zeros([BLOCK], tl.float32)
    for at in range(begin, num_elements, step):
        offsets = at + tl.arange(0, BLOCK)
        total += tl.load(x_ptr + offsets, mask=offsets < num_elements, other=0.0)
    tl.store(out_ptr + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit
def _empty_kernel(USE_PDL: tl.constexpr):
    wait(USE_PDL)
    launch_dependents(USE_PDL)


def read_sum(x: Tensor, block: int, num_warps: int, programs_per_sm: int) -> Launch:
    """Reads x, fp32, once. Returns the launch; its partial sums have no other use."""
    num_programs = triton.cdiv(x.numel(), block)
    if programs_per_sm:
        num_sms = 2
        if x.device.type == "cuda":
            num_sms = torch.cuda.get_device_properties(x.device).multi_processor_count
        num_programs = min(num_programs, num_sms * programs_per_sm)
    out = torch.empty(num_programs, device=x.device)

    def launch() -> Tensor:
        _sum_kernel[(num_programs,)](x, out, x.numel(), BLOCK=block, num_warps=num_warps)
        return out

    return launch


def empty(*, pdl: bool) -> Launch:
    return lambda: _empty_kernel[(1,)](USE_PDL=pdl, num_warps=4, launch_pdl=pdl)


def measure(bench: Bench) -> None:
    """figures: read, copy (bytes/s, counting reads and writes), matmul (FLOP/s), boundary_us, .."""
    _read(bench)
    bench.free()
    _copy(bench)
    bench.free()
    _matmul(bench)
    bench.free()
    _boundary(bench)


def _read(bench: Bench) -> None:
    num_bytes = 40_000 if bench.is_dry else _READ_BYTES
    x = torch.ones(num_bytes // 4, device=bench.device)
    cases = {f"read {reader}": [read_sum(x, *reader)] for reader in READERS}
    for name, launches in cases.items():
        found = float(launches[0]().double().sum())  # type: ignore[attr-defined]
        if found != x.numel():
            raise ArithmeticError(f"{name}: the sum of {x.numel()} ones is {found}")
    samples = time_launches(bench, cases, rounds=5)
    best = min(median_of(samples, name) for name in samples)
    bench.samples |= samples
    bench.figure("read", num_bytes / best)
    bench.row(f"read 8 GB, best of {len(READERS)} (B)", num_bytes / best / 1e12, "TB/s")


def _copy(bench: Bench) -> None:
    num_bytes = 40_000 if bench.is_dry else _COPY_BYTES
    source = torch.ones(num_bytes // 4, device=bench.device)
    target = torch.empty_like(source)
    samples = time_launches(bench, {"copy": [lambda: target.copy_(source)]}, rounds=5)
    rate = 2 * num_bytes / median_of(samples, "copy")
    bench.figure("copy", rate)
    bench.row("copy 4 GB, reads and writes", rate / 1e12, "TB/s")


def _matmul(bench: Bench) -> None:
    n = 32 if bench.is_dry else _MATMUL
    a, b = (torch.randn(n, n, device=bench.device).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    samples = time_launches(bench, {"matmul": [lambda: torch.mm(a, b, out=out)]})
    rate = 2 * n**3 / median_of(samples, "matmul")
    bench.figure("matmul", rate)
    bench.row(f"bf16 matmul {_MATMUL}, random data", rate / 1e12, "TFLOP/s")


def _boundary(bench: Bench) -> None:
    """From one empty kernel of a graph to the next."""
    num_launches = 2 if bench.is_dry else 400
    cases = {"boundary": [empty(pdl=False)] * num_launches}
    if use_pdl(bench.device):
        cases["boundary, PDL"] = [empty(pdl=True)] * num_launches
    else:
        bench.note("No programmatic dependent launch on this device.")
    samples = time_launches(bench, cases)
    for name in samples:
        seconds = median_of(samples, name)
        bench.figure(name.replace(", ", "_").lower() + "_us", seconds * 1e6)
        bench.row(f"empty kernel {name} in a graph", seconds * 1e6, "us")
