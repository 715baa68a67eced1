"""The chips that the kernels are compiled for: what a launcher may ask about each, and its limits."""

from __future__ import annotations

from dataclasses import dataclass

from triton.backends.compiler import GPUTarget


@dataclass(frozen=True, slots=True)
class Target:
    """`capability` and `num_sms` are what torch reports for the chip named."""

    name: str
    gpu: GPUTarget
    capability: tuple[int, int]
    num_sms: int
    max_shared_bytes: int  # of one program; beyond it the launch fails
    reserved_shared_bytes: int = 0  # the system's own: listed as the kernel's, not limited
    has_fp8: bool = True  # e4m3, for KV caches
    is_judged: bool = False  # also by how good its code is; has the most cases by default

    @property
    def is_nvidia(self) -> bool:
        return bool(self.gpu.backend == "cuda")


_A100 = Target("sm_80", GPUTarget("cuda", 80, 32), (8, 0), 108, 163 * 1024, has_fp8=False)
_H100 = Target("sm_90", GPUTarget("cuda", 90, 32), (9, 0), 132, 227 * 1024, 1024, is_judged=True)
_B200 = Target("sm_100", GPUTarget("cuda", 100, 32), (10, 0), 148, 227 * 1024, 1024)
_MI300X = Target("gfx942", GPUTarget("hip", "gfx942", 64), (9, 4), 304, 64 * 1024)

TARGETS = {target.name: target for target in (_A100, _H100, _B200, _MI300X)}
