"""Where and in which precision a training runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from server.training.errors import TrainingError


@dataclass(frozen=True)
class Compute:
    device: torch.device
    use_bf16: bool  # matmuls in bf16 by autocast; weights, norms, softmax and loss stay fp32
    use_compile: bool

    def autocast(self) -> AbstractContextManager[Any]:
        if not self.use_bf16:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def choose_compute(device: str, use_compile: bool, num_threads: int | None) -> Compute:
    """`device` is auto, cpu or cuda. Raises TrainingError if cuda is asked for and absent."""
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise TrainingError("--device cuda: torch finds no CUDA GPU on this machine")
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    if has_cuda and device != "cpu":
        return Compute(torch.device("cuda"), use_bf16=True, use_compile=use_compile)
    # Without the instruction set bf16 matmuls are emulated, and slower than fp32.
    has_bf16 = torch.cpu._is_avx512_bf16_supported()
    return Compute(torch.device("cpu"), use_bf16=has_bf16, use_compile=use_compile)
