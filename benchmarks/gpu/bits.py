"""Same bits: requests alone and in batches up to 512, and rows of a product whatever rows are beside them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.linear import Inputs, Product, layer
from benchmarks.gpu.offline import Load, Offline
from benchmarks.gpu.random_model import config_of
from kernels.gemm import Workspace, capability
from kernels.tuning import gemm_tile, is_split
from server.sequence import SamplingParams, SequenceRequest

_BATCHES = (2, 17, 64, 256, 512)
_NUM_ALONE, _NUM_NEW = 24, 24
_MAX_M = 4096
_SEGMENTS_FOR = torch.bfloat16

Said = list[tuple[int, bytes]]  # of one request: tokens, and the bits of their logprobs


def measure(bench: Bench) -> None:
    """figures: requests_compared, requests_different; rows_compared, rows_different."""
    _products(bench)
    bench.free()
    _requests(bench)


def tile_changes(n: int, k: int, max_m: int, gpu: tuple[int, int]) -> list[int]:
    """The numbers of rows from which on `kernels.tuning` runs a product of this shape in another way."""

    def way(m: int) -> tuple[object, bool]:
        tile = gemm_tile(m, n, k, _SEGMENTS_FOR, gpu)
        return tile, is_split(m, n, k, tile)

    return [m for m in range(1, max_m + 1) if m == 1 or way(m) != way(m - 1)]


def _products(bench: Bench) -> None:
    max_m = 130 if bench.is_dry else _MAX_M
    gpu = capability(bench.device)
    num_compared = num_different = 0
    for width in bench.sizes((768, 1600), (64,)):
        for product in layer(width):
            if bench.is_late(f"{product.name} of {width}"):
                break
            changes = tile_changes(product.n, product.k, max_m, gpu)
            sizes = {m for at in changes for m in (at - 1, at, at + 1)} | {1, 2, 3, 17, 63, 65, 257}
            sizes = {m for m in sizes if 0 < m < max_m}
            if bench.is_dry:
                sizes = {1, 65}
            compared, different = _compare_rows(bench, product, sorted(sizes), max_m)
            num_compared, num_different = num_compared + compared, num_different + different
    bench.figure("rows_compared", num_compared)
    bench.figure("rows_different", num_different)
    bench.row(
        f"rows of products, 1 to {max_m} beside each other", "compared", num_compared,
        "different", num_different,
    )  # fmt: skip


def _compare_rows(
    bench: Bench, product: Product, sizes: Sequence[int], max_m: int
) -> tuple[int, int]:
    """Rows of products of each size against the same rows among `max_m`."""
    workspace = Workspace.allocate(bench.device, product.k)
    whole = Inputs(product, max_m, bench.device)
    expected = whole.ours(workspace).clone()
    num_compared = num_different = 0
    for m in sizes:
        part = Inputs.__new__(Inputs)
        part.weight, part.bias = whole.weight, whole.bias
        part.x, part.out = whole.x[max_m - m :], torch.empty_like(whole.out[:m])
        found = part.ours(workspace)
        is_equal = (found.view(torch.int16) == expected[max_m - m :].view(torch.int16)).all(dim=1)
        num_compared += m
        num_different += m - int(is_equal.sum())
    return num_compared, num_different


def _requests(bench: Bench) -> None:
    batches = (3,) if bench.is_dry else _BATCHES
    num_alone, num_new = (2, 2) if bench.is_dry else (_NUM_ALONE, _NUM_NEW)
    load = Load(batches[-1], 160, num_new)
    offline = Offline(config_of("tiny" if bench.is_dry else "124M"), load, bench.device)
    make = Requests(offline.config.vocab_size, num_new, 3 if bench.is_dry else 150)
    alone = [run(offline, [make(i)], None)[i] for i in range(num_alone)]
    num_compared = num_different = 0
    for size in batches:
        # With the smaller budget prompts are cut in chunks, beside streams that decode.
        for budget in (None,) if bench.is_dry else (None, offline.limits.max_num_seqs + 37):
            if bench.is_late(f"a batch of {size}", 6):
                return
            said = run(offline, [make(i) for i in range(size)], budget)
            different = sum(said[i] != alone[i] for i in range(min(size, num_alone)))
            num_compared += min(size, num_alone)
            num_different += different
            bench.figure("requests_compared", num_compared)
            bench.figure("requests_different", num_different)
    bench.row(
        f"requests alone and in batches up to {batches[-1]}", "compared", num_compared,
        "different", num_different,
    )  # fmt: skip


class Requests:
    """Request `i` is the same whenever it is asked for: greedy, drawn, filtered and penalised by turns."""

    def __init__(self, vocab_size: int, num_new: int, max_prompt: int) -> None:
        self._vocab_size = vocab_size
        self._num_new = num_new
        self._max_prompt = max_prompt

    def __call__(self, i: int) -> SequenceRequest:
        length = 1 + i * 37 % self._max_prompt
        prompt = [(i * 7919 + position * 31) % self._vocab_size for position in range(length)]
        kinds: tuple[dict[str, float | int], ...] = (
            {"temperature": 0.0, "logprobs": 2},
            {},
            {"top_k": 50, "top_p": 0.9, "logprobs": 0},
            {"presence_penalty": 0.5, "repetition_penalty": 1.1},
        )
        params = SamplingParams(self._num_new, seed=i, **kinds[i % len(kinds)])  # type: ignore[arg-type]
        return SequenceRequest(i, prompt, 0, params)


def run(offline: Offline, requests: list[SequenceRequest], budget: int | None) -> dict[int, Said]:
    """What each request says, all of them beside each other."""
    engine = offline.engine(max_num_batched_tokens=budget)
    said: dict[int, Said] = {request.seq_id: [] for request in requests}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        for _, output in engine.step().outputs:
            found = output.logprobs or [None] * len(output.token_ids)
            for token_id, logprobs in zip(output.token_ids, found, strict=True):
                said[output.seq_id].append((token_id, _bits(logprobs)))
    return said


def _bits(logprobs: object) -> bytes:
    if logprobs is None:
        return b""
    values = [logprobs.logprob, *logprobs.top_logprobs]  # type: ignore[attr-defined]
    return struct.pack(f"<{len(values)}f", *values)
