"""Decode attention: as a share of the read bandwidth, against what torch offers and FlashInfer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, sentence
from benchmarks.gpu.decode_rivals import rivals
from benchmarks.gpu.paged import DTYPES, PagedKV, Sequences, lognormal
from benchmarks.gpu.timing import Launch, copies, median_of, ratio, time_launches
from kernels import tuning
from kernels.paged_attention import Workspace, paged_attention
from kernels.step_inputs import TileMap, write_tile_map

_UNIFORM_16K = Sequences("16k in 32 x 504", (504,) * 32)
_UNIFORM_64K = Sequences("64k in 64 x 1024", (1024,) * 64)
_ONE_LONG = Sequences("16k in 1 x 8192, 31 x 256", (8192, *(256,) * 31))
_RAGGED = Sequences("64k in 64, lognormal", lognormal(64, 65536))
_GROUPED = Sequences("64k in 64 x 1024, 32 heads of 8 KV", (1024,) * 64, 32, 8)
_FP8 = Sequences("64k in 64 x 1024, fp8", (1024,) * 64, cache="fp8")

SIZES = (
    (_UNIFORM_16K, _ONE_LONG),  # timed together, the first being what the others are compared with
    (_UNIFORM_64K, _RAGGED, _FP8),
    (_GROUPED,),
)
MORE_SIZES = (
    (Sequences("1k in 1 x 1024", (1024,)),),
    (Sequences("4k in 8 x 512", (512,) * 8),),
    (Sequences("16k in 16 x 1024", (1024,) * 16),),
    (Sequences("16k in 128 x 128", (128,) * 128),),
    (Sequences("64k in 256 x 256", (256,) * 256),),
    (Sequences("256k in 256 x 1024", (1024,) * 256),),
    (Sequences("64k in 64 x 1024, 25 heads", (1024,) * 64, 25, 25),),
    (Sequences("64k in 64 x 1024, 16 heads of 128", (1024,) * 64, 16, 16, 128),),
    (Sequences("64k, 32 heads of 128, 8 KV", (1024,) * 64, 32, 8, 128),),
)
_TINY = (
    (Sequences("tiny", (40, 40), 2, 2, 16), Sequences("tiny, ragged", (17, 63), 2, 2, 16)),
    (Sequences("tiny, grouped", (33, 33), 4, 2, 16),),
    (Sequences("tiny, fp8", (33, 33), 2, 2, 16, "fp8"),),
)
_TOLERANCE = 0.03  # of values around 1 in bf16
_KEYS = {
    _UNIFORM_16K.name: "16k",
    _UNIFORM_64K.name: "64k",
    _ONE_LONG.name: "one_long",
    _RAGGED.name: "lognormal",
    _GROUPED.name: "grouped",
    _FP8.name: "fp8",
}


class Ours:
    """Our kernel on its own copy of the inputs; calling it is one launch."""

    def __init__(self, sequences: Sequences, device: torch.device) -> None:
        num_rows, width = len(sequences.seq_lens), sequences.num_heads * sequences.head_dim
        cache_dtype = DTYPES[sequences.cache]
        split = tuning.split_tokens(sequences.head_dim, cache_dtype)
        num_items = sum(-(-n // split) for n in sequences.seq_lens)
        self.kv = PagedKV.random(sequences, device)
        self.q = torch.randn(num_rows, width, device=device, dtype=torch.bfloat16)
        self.out = torch.empty_like(self.q)
        self._scale = sequences.scale
        self._tiles = TileMap.allocate(num_rows, num_items, split, device)
        write_tile_map(self.kv.seq_lens, self._tiles)
        self._workspace = Workspace.allocate(
            device,
            max_rows=num_rows,
            max_items=num_items,
            num_heads=sequences.num_heads,
            num_kv_heads=sequences.num_kv_heads,
            head_dim=sequences.head_dim,
            cache_dtype=cache_dtype,
        )

    def __call__(self) -> Tensor:
        kv = self.kv
        paged_attention(
            self.q, kv.k, kv.v, kv.seq_lens, kv.rows, kv.tables, self._tiles.split_starts,
            self._tiles.item_rows, self._scale, self.out, workspace=self._workspace,
            k_scale=kv.scale, v_scale=kv.scale,
        )  # fmt: skip
        return self.out


def measure(bench: Bench) -> None:
    _measure(bench, bench.sizes(SIZES, _TINY))


def measure_more(bench: Bench) -> None:
    _measure(bench, bench.sizes(MORE_SIZES, _TINY[:1]))


def _measure(bench: Bench, groups: Sequence[Sequence[Sequences]]) -> None:
    for group in groups:
        if bench.is_late(group[0].name, 8):
            continue
        ours = {
            size.name: [Ours(size, bench.device) for _ in range(copies(bench, size.kv_bytes))]
            for size in group
        }
        samples = time_launches(bench, ours)  # uniform and ragged, interleaved
        for size in group:
            _report(bench, size, samples, group[0].name)
        for size in group:
            _against_rivals(bench, size, ours.pop(size.name))
        bench.free()


def _report(bench: Bench, size: Sequences, samples: dict[str, list[float]], uniform: str) -> None:
    seconds = median_of(samples, size.name)
    key = _KEYS.get(size.name, size.name)
    share = size.kv_bytes / seconds / bench.limit("read")
    over = ratio(samples, size.name, uniform)
    bench.samples[key] = samples.get(size.name, [])
    bench.figure(f"{key}.us", seconds * 1e6)
    bench.figure(f"{key}.share_of_read", share)
    bench.figure(f"{key}.over_uniform", over)
    is_other = size.name != uniform
    bench.row(size.name, "us", seconds * 1e6, "share of B", share, *(
        ("of uniform's time", over) if is_other else ()
    ))  # fmt: skip


def _against_rivals(bench: Bench, size: Sequences, ours: list[Ours]) -> None:
    """Ours and the rivals on the same inputs, in one interleaved run."""
    if size.cache == "fp8":  # torch has no attention over fp8; its figure is the bf16 cache's
        return
    key = _KEYS.get(size.name, size.name)
    cases: dict[str, list[Launch]] = {"ours": list(ours)}
    for name, make in rivals(bench, size).items():
        if bench.is_late(f"{name} at {size.name}", 8):
            break
        try:
            cases[name] = [make(one.q, one.kv) for one in ours]
            theirs: Tensor = cases[name][0]()  # type: ignore[assignment]
            bench.agree(f"{key}.{name}", ours[0](), theirs, _TOLERANCE)
        except Exception as error:
            cases.pop(name, None)
            bench.note(f"{name} did not run at {size.name} ({sentence(error)}).")
    samples = time_launches(bench, cases)
    for name in list(cases)[1:]:
        speedup = ratio(samples, name, "ours")
        bench.figure(f"{key}.{name}.speedup", speedup)
        bench.row(f"  {name}", "times our time", speedup)


def launches(device: torch.device) -> dict[str, Launch]:
    """For compiling ahead: one launch of each size."""
    sizes = [size for group in SIZES for size in group]
    return {f"decode {size.name}": partial(_launch, size, device) for size in sizes}


def _launch(size: Sequences, device: torch.device) -> None:
    Ours(size, device)()
