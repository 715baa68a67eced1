"""The engine against the compiled loop in plain torch: same weights, same lengths, interleaved."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from benchmarks.gpu.bench import Bench, sentence
from benchmarks.gpu.engine import load_of
from benchmarks.gpu.offline import Load, Offline
from benchmarks.gpu.plain_torch import Decoder, PlainGPT, tune_as_gpt_fast
from benchmarks.gpu.random_model import config_of
from benchmarks.gpu.timing import Launch

_ROUNDS = 5


def measure(bench: Bench, shape: str, streams: Sequence[int]) -> None:
    """figures: <streams>.speedup: the loop's time of a step / the engine's."""
    loads = [load_of(bench, n) for n in streams]
    offline = Offline(config_of("tiny" if bench.is_dry else shape), loads[-1], bench.device)
    for load in loads[-1:] if bench.is_dry else loads:
        if bench.is_late(f"{load.num_streams} streams", 15):
            return
        offline.decode(Load(load.num_streams, load.prompt_tokens, 1))
        decoder, step, kind = _loop(bench, offline, load)
        start = decoder.position.clone()
        ours, theirs = [], []
        for _ in range(1 if bench.is_dry else _ROUNDS):
            ours.append(offline.decode(load).step_s)
            decoder.position.copy_(start)
            theirs.append(_step_s(bench, step, load))
        _report(bench, f"{load.num_streams}", kind, ours, theirs)
        del decoder, step
        bench.free()


def max_tokens_of(load: Load) -> int:
    """Room in the loop's cache: for the prompt, the steps, and a few to capture its graph."""
    return -(-(load.prompt_tokens + load.num_steps + 8) // 64) * 64


def _loop(bench: Bench, offline: Offline, load: Load) -> tuple[Decoder, Launch, str]:
    """Its cache holds random tokens up to where the engine's streams are, and has room for what is drawn."""
    model = PlainGPT(
        offline.config, offline.weights, load.num_streams, max_tokens_of(load), torch.bfloat16
    )
    for keys, values in model.caches:
        keys.normal_()
        values.normal_()
    decoder = Decoder(model, load.prompt_tokens)
    if not bench.is_dry:
        tune_as_gpt_fast()
    try:
        if not bench.known.get("compile.loop", 1.0):
            raise TimeoutError("it did not compile in the time there was")
        backend = "eager" if bench.is_dry else "inductor"
        return decoder, decoder.step(is_compiled=True, backend=backend), "compiled loop"
    except Exception as error:
        decoder = Decoder(model, load.prompt_tokens)
        bench.note(
            f"The loop did not compile ({sentence(error)}): it is a graph of torch's own calls."
        )
        return decoder, decoder.step(is_compiled=False), "loop, not compiled"


def _step_s(bench: Bench, step: Launch, load: Load) -> float:
    def wait() -> None:
        if bench.device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    started = time.perf_counter()
    for _ in range(load.num_steps):
        step()
    wait()
    return (time.perf_counter() - started) / load.num_steps


def _report(bench: Bench, key: str, kind: str, ours: list[float], theirs: list[float]) -> None:
    speedup = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    bench.samples[key], bench.samples[f"{key}.loop"] = ours, theirs
    if kind == "compiled loop":
        bench.figure(f"{key}.speedup", speedup)
    bench.figure(f"{key}.step_us", statistics.median(ours) * 1e6)
    bench.figure(f"{key}.loop_us", statistics.median(theirs) * 1e6)
    bench.row(
        f"{key} streams", "us a step", statistics.median(ours) * 1e6, kind,
        statistics.median(theirs) * 1e6, "times our time", speedup,
    )  # fmt: skip
