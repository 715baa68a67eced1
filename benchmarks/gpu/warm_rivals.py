"""`python -m benchmarks.gpu.warm_rivals flex|loop`: fills torch's compile cache while our kernels compile.

Ends with 0 if the rival compiled: only then is it measured, so that none can eat the time of the others.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from benchmarks.gpu import decode
from benchmarks.gpu.decode_rivals import Flex
from benchmarks.gpu.engine import real_load
from benchmarks.gpu.loop import max_tokens_of
from benchmarks.gpu.paged import Sequences
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.plain_torch import Decoder, PlainGPT, tune_as_gpt_fast
from benchmarks.gpu.random_model import config_of, random_weights

_TINY = (Sequences("tiny", (20, 33), 2, 2, 16),)


def flex(device: torch.device, *, is_dry: bool) -> None:
    for size in _TINY if is_dry else [size for group in decode.SIZES for size in group]:
        if size.cache == "bf16":
            ours = decode.Ours(size, device)
            Flex(size, is_compiled=not is_dry)(ours.q, ours.kv)()


def loop(device: torch.device, *, is_dry: bool) -> None:
    if not is_dry:
        tune_as_gpt_fast()
    sizes: dict[str, Any] = dict(PARTS["loop_124M"].sizes)
    config = config_of("tiny" if is_dry else sizes["shape"])
    weights = random_weights(config, device)
    for num_streams in sizes["streams"]:
        load = real_load(num_streams)
        max_tokens = 8 if is_dry else max_tokens_of(load)
        model = PlainGPT(config, weights, num_streams, max_tokens, torch.bfloat16)
        Decoder(model, 1).step(is_compiled=True, backend="eager" if is_dry else "inductor")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rival", choices=("flex", "loop"))
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    device = torch.device("cpu" if options.dry else "cuda")
    (flex if options.rival == "flex" else loop)(device, is_dry=options.dry)
    print("compiled")
    return 0


if __name__ == "__main__":
    sys.exit(main())
