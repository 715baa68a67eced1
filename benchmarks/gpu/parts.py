"""What `make gpu` is made of, in the order it runs: pure data. Knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """`work` is module:function under benchmarks.gpu; it gets a Bench and the keyword arguments `sizes`."""

    name: str
    title: str
    work: str
    budget_s: float  # on an H200; past it the part is stopped, and what it has found so far is kept
    is_default: bool = True
    sizes: tuple[tuple[str, object], ...] = ()


def _engine(shape: str, streams: tuple[int, ...], budget_s: float, name: str = "") -> Part:
    name = name or f"engine_{shape}"
    title = f"engine offline, {shape}, random weights, bf16"
    is_default = name in ("engine_124M", "engine_1.5B")
    sizes = (("shape", shape), ("streams", streams))
    return Part(name, title, "engine:measure", budget_s, is_default, sizes)


def _idle(shape: str, streams: tuple[int, ...], budget_s: float, name: str = "") -> Part:
    name = name or f"idle_{shape}"
    title = f"GPU idle between steps, {shape}, by torch's profiler"
    is_default = name in ("idle_124M", "idle_1.5B")
    sizes = (("shape", shape), ("streams", streams))
    return Part(name, title, "engine:measure_idle", budget_s, is_default, sizes)


PARTS = {
    part.name: part
    for part in (
        Part("limits", "limits of this GPU", "limits:measure", 40),
        Part("decode", "decode attention", "decode:measure", 90),
        Part("linear", "matrix products of a layer", "linear:measure", 60),
        _engine("124M", (1, 64, 256), 60),
        Part("bits", "same bits, alone and in batches", "bits:measure", 70),
        Part(
            "loop_124M",
            "engine against a compiled CUDA-graph loop in plain torch, 124M",
            "loop:measure",
            75,
            sizes=(("shape", "124M"), ("streams", (1, 64))),
        ),
        Part("sampler", "sampling, 256 rows of 50257", "sampling:measure", 30),
        Part("lm_head", "LM head with the draw in it", "head:measure", 30),
        _engine("1.5B", (1, 64), 60),
        Part("prefill", "prefill attention", "prefill:measure", 45),
        Part("norm", "residual add + LayerNorm", "norm:measure", 15),
        Part(
            "transformers_124M",
            "transformers' continuous batching, 124M",
            "continuous_batching:measure",
            60,
            sizes=(("shape", "124M"), ("streams", (64,))),
        ),
        _idle("124M", (64, 256), 40),
        _idle("1.5B", (64,), 40),
        Part(
            "decode_more",
            "decode attention, more shapes",
            "decode:measure_more",
            120,
            is_default=False,
        ),
        Part(
            "linear_more",
            "matrix products, more shapes",
            "linear:measure_more",
            120,
            is_default=False,
        ),
        _engine("124M", (8, 512), 90, "engine_124M_more"),
        _engine("1.5B", (8, 256), 120, "engine_1.5B_more"),
        _idle("124M", (512,), 60, "idle_124M_more"),
        _engine("355M", (1, 8, 64, 256, 512), 150),
        _engine("774M", (1, 8, 64, 256), 150),
    )
}

# They come first, together, and have no rival: see `first.py`.
FIRST = ("compile", "tests")
FIRST_BUDGET_S = 150.0

NAMES = (*FIRST, *PARTS)
DEFAULT_NAMES = (*FIRST, *(name for name, part in PARTS.items() if part.is_default))
DRY_NAMES = tuple(name for name in DEFAULT_NAMES if "1.5B" not in name)  # each work once
