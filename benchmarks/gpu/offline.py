"""The server's engine over its GPU runner, with random weights and no files: as `generate` runs it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

import benchmarks.gpu.stand_in  # noqa: F401 - before the engine
from benchmarks.gpu.measured_queue import Clocks, MeasuredCudaQueue, MeasuredEagerQueue
from benchmarks.gpu.random_model import random_weights
from server.config import Limits
from server.engine.block_manager import BlockManager
from server.engine.engine import Engine
from server.engine.prefix_cache import PrefixCache
from server.engine.scheduler import Scheduler
from server.model.checkpoint import GPTWeights
from server.model.config import GPTConfig
from server.model.device_kv_cache import DeviceKVCache
from server.model.gpu_gpt import GpuGPT
from server.runner.gpu.queue import Queue
from server.runner.gpu.runner import GpuRunner
from server.sequence import SamplingParams, SequenceRequest

BLOCK_SIZE = 16
MAX_NUM_BATCHED_TOKENS = 4096  # the server's own default on a GPU
_SETTLING_STEPS = 2  # after the last stream was admitted: its last chunk, and one in flight


@dataclass(frozen=True, slots=True)
class Load:
    """Streams that run beside each other, timed for some steps once all of them do."""

    num_streams: int
    prompt_tokens: int
    num_steps: int

    @property
    def new_tokens(self) -> int:
        """Of each: the first stream must still run when the last one's steps have been timed."""
        budget = max(MAX_NUM_BATCHED_TOKENS - self.num_streams, 1)
        prefill_steps = -(-self.num_streams * self.prompt_tokens // budget)
        return prefill_steps + _SETTLING_STEPS + self.num_steps + 8

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.new_tokens


@dataclass
class Steps:
    """Decode steps in which all streams ran."""

    wall_s: list[float] = field(default_factory=list)  # of each call of engine.step
    host_s: list[float] = field(default_factory=list)  # of it, not spent in waiting for the device
    cached_tokens: float = 0.0  # in all, at the middle of these steps
    graph_s: list[float] = field(default_factory=list)
    between_s: list[float] = field(default_factory=list)

    @property
    def step_s(self) -> float:
        """Mean over the run: with overlap a single call says little."""
        return sum(self.wall_s) / len(self.wall_s)


class Offline:
    """One model and one runner; each run has a new engine, so no run finds the other's prefixes."""

    def __init__(
        self,
        config: GPTConfig,
        max_load: Load,
        device: torch.device,
        queue: Queue | None = None,  # another than the device's own
    ) -> None:
        self.config = config
        self.weights: GPTWeights = random_weights(self.config, device)
        self.clocks = Clocks(has_events=device.type == "cuda")
        self.queue = queue or (
            MeasuredCudaQueue(device, self.clocks)
            if device.type == "cuda"
            else MeasuredEagerQueue(self.clocks)
        )
        streams = max_load.num_streams
        max_tokens = min(MAX_NUM_BATCHED_TOKENS, self.config.n_positions * 64)
        self.limits = Limits(self.config.n_positions, streams, max(max_tokens, streams), BLOCK_SIZE)
        self.num_blocks = streams * -(-(max_load.tokens + BLOCK_SIZE) // BLOCK_SIZE)
        self.num_blocks = max(self.num_blocks, self.limits.blocks_per_seq)
        with torch.inference_mode():
            model = GpuGPT(
                self.config,
                self.weights,
                torch.bfloat16,
                device,
                self.limits.max_num_batched_tokens,
            )
            cache = DeviceKVCache.allocate(
                self.config, self.num_blocks, BLOCK_SIZE, torch.bfloat16, device
            )
        self.runner = GpuRunner(model, cache, self.queue, self.limits)

    def engine(self, steps_in_flight: int = 2, max_num_batched_tokens: int | None = None) -> Engine:
        self.runner.max_steps_in_flight = steps_in_flight
        scheduler = Scheduler(
            BlockManager(self.num_blocks, PrefixCache(BLOCK_SIZE)),
            max_num_seqs=self.limits.max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens or self.limits.max_num_batched_tokens,
            max_model_len=self.limits.max_model_len,
        )
        return Engine(scheduler, self.runner, self.config.vocab_size)

    def decode(self, load: Load, steps_in_flight: int = 2) -> Steps:
        """Prefill all streams, then time steps in which each of them draws a token."""
        engine = self.running(load, steps_in_flight)
        steps, clocks = Steps(), self.clocks
        self.queue.synchronize()
        clocks.restart()
        drawn = engine.stats().num_generated_tokens
        for _ in range(load.num_steps):
            waited, started = clocks.waited_s, time.perf_counter()
            engine.step()
            wall = time.perf_counter() - started
            steps.wall_s.append(wall)
            steps.host_s.append(wall - (clocks.waited_s - waited))
        self.queue.synchronize()
        if engine.stats().num_generated_tokens - drawn < (load.num_steps - 2) * load.num_streams:
            raise ArithmeticError("not all streams ran in all steps that were timed")
        steps.graph_s, steps.between_s = clocks.graph_seconds()
        steps.cached_tokens = load.num_streams * load.prompt_tokens + drawn
        steps.cached_tokens += load.num_steps * load.num_streams / 2
        self.end(engine)
        return steps

    def running(self, load: Load, steps_in_flight: int = 2) -> Engine:
        """An engine all of whose streams have drawn a token."""
        engine = self.engine(steps_in_flight)
        for request in requests(load, self.config.vocab_size):
            engine.submit(request)
        while engine.stats().num_waiting:
            engine.step()
        for _ in range(_SETTLING_STEPS):
            engine.step()
        return engine

    def end(self, engine: Engine) -> None:
        engine.abort_owner(0)
        while engine.has_work:
            engine.step()
        self.queue.synchronize()


def requests(load: Load, vocab_size: int) -> Iterator[SequenceRequest]:
    """Different prompts; temperature 1, nothing that filters."""
    for stream in range(load.num_streams):
        prompt = [(stream * 7919 + i * 31) % vocab_size for i in range(load.prompt_tokens)]
        params = SamplingParams(load.new_tokens, seed=stream)
        yield SequenceRequest(stream, prompt, 0, params)
