"""Fills Triton's cache with what the parts will launch, on all cores, before anything is timed.

`python -m benchmarks.gpu.compile --shard I --of N` compiles every N-th case: launchers run on tensors
without memory (`benchmarks.kernels.pretend_gpu`), so no process needs the GPU, and a launch is specialised
as the real one will be. What this misses is compiled when it is first launched.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from triton.backends.nvidia import driver as nvidia_driver

from benchmarks.gpu import bits, decode, engine, head, limits, linear, norm, prefill, sampling
from benchmarks.gpu.offline import Load, Offline
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.random_model import config_of
from benchmarks.kernels.pretend_gpu import pretend_gpu
from benchmarks.kernels.targets import TARGETS, Target
from server.runner.gpu.queue import Arrival, EagerQueue

_GPU = torch.device("cuda", 0)


class PretendQueue(EagerQueue):
    """The runner's queue over tensors without memory: nothing comes back."""

    device = _GPU

    def host_buffer(self, num: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(num, dtype=dtype)

    def copy_back(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Arrival:
        return super().copy_back([])


def cases() -> dict[str, Callable[[], object]]:
    """By name; each makes its tensors and launches what a part will launch."""
    found: dict[str, Callable[[], object]] = {}
    for module in (decode, prefill, head, sampling, linear, norm):
        found |= module.launches(_GPU)
    for name in ("engine_124M", "engine_1.5B"):
        sizes: dict[str, Any] = dict(PARTS[name].sizes)
        for num_streams in sizes["streams"]:
            work = partial(_engine, sizes["shape"], num_streams, max(sizes["streams"]))
            found[f"{name}, {num_streams} streams"] = work
    found["bits"] = _bits
    found["limits"] = _limits
    return found


def _engine(shape: str, num_streams: int, max_streams: int) -> None:
    """One layer stands for all: the others launch the same binaries."""
    config = replace(config_of(shape), n_layer=1)
    offline = Offline(config, engine.real_load(max_streams), _GPU, PretendQueue())
    offline.decode(replace(engine.real_load(num_streams), num_steps=2))


def _bits() -> None:
    config = replace(config_of("124M"), n_layer=1)
    offline = Offline(config, Load(512, 160, 8), _GPU, PretendQueue())
    make = bits.Requests(config.vocab_size, 4, 150)
    for size in (1, 2, 17, 64, 300):
        bits.run(offline, [make(i) for i in range(size)], None)


def _limits() -> None:
    x = torch.ones(2_000_000_000, device=_GPU)
    for reader in limits.READERS:
        limits.read_sum(x, *reader)()
    for pdl in (False, True):
        limits.empty(pdl=pdl)()


def target() -> Target | None:
    """This machine's GPU; without one, an H100."""
    if not torch.cuda.is_available():
        return TARGETS["sm_90"]
    properties = torch.cuda.get_device_properties(0)
    like = TARGETS.get(f"sm_{properties.major}{properties.minor}")
    return like and replace(like, num_sms=properties.multi_processor_count)


class Outcome:
    """Counts binaries; keeps what went wrong."""

    def __init__(self, *, has_gpu: bool) -> None:
        # Up to Triton 3.6 each signature has a C launcher, which is compiled like a kernel.
        self._has_launchers = has_gpu and hasattr(nvidia_driver, "make_launcher")
        self.keys: set[str] = set()
        self.failures: list[str] = []

    def on_launch(self, name: str, made: Any) -> None:
        if isinstance(made, Exception):
            self.failures.append(f"{name}: {type(made).__name__}: {str(made)[:200]}")
        elif made.hash not in self.keys:
            self.keys.add(made.hash)
            if self._has_launchers:
                self._make_launcher(made)

    def _make_launcher(self, compiled: Any) -> None:
        try:
            nvidia_driver.CudaLauncher(compiled.src, compiled.metadata)
        except Exception as error:
            self._has_launchers = False
            self.failures.append(f"launchers: {type(error).__name__}: {str(error)[:200]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--of", type=int, default=1)
    parser.add_argument("--limit", type=int, help="so many cases at most")
    options = parser.parse_args()
    this = target()
    if this is None:
        print("failed: no target of this GPU's kind is known; kernels compile when first launched")
        return 0
    # Asked before the GPU is a pretended one.
    outcome = Outcome(has_gpu=torch.cuda.is_available())
    begin = time.monotonic()
    with pretend_gpu(this, outcome.on_launch):
        mine = itertools.islice(cases().items(), options.shard, None, options.of)
        for name, case in itertools.islice(mine, options.limit):
            try:
                case()
            except Exception as error:
                outcome.failures.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
            print(
                f"case {name}: {len(outcome.keys)} binaries, {time.monotonic() - begin:.0f} s",
                flush=True,
            )
    for failure in outcome.failures:
        print("failed: " + " ".join(failure.split()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
