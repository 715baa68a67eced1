"""`continuo generate` and `warm-up`: an engine in this process, with no server and no HTTP."""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import replace
from typing import get_args

from server.api.failures import failure_error
from server.config import CPU_DTYPES, EngineConfig, GenerateConfig, Quantization
from server.errors import ContextLengthError, RequestError
from server.model_files import ModelFiles
from server.sequence import SamplingParams, SequenceRequest
from server.startup import check_kernels_are_ours, child_environment, resolve_engine


def generate(engine_config: EngineConfig, config: GenerateConfig, prompt: str) -> int:
    """Writes the prompt and its completion to stdout as it comes."""
    engine_config = replace(resolve_engine(engine_config), max_num_seqs=1)
    _prepare_process()
    from server.assembly import assemble
    from server.tokenizer import StreamDecoder, load_tokenizer

    tokenizer = load_tokenizer(ModelFiles(engine_config.model, engine_config.model_manifest))
    assembled = assemble(engine_config, tokenizer)
    prompt_ids = tokenizer.encode(prompt)
    if not prompt_ids:
        raise RequestError("The prompt is empty: give at least one character to go on from.")
    max_model_len = assembled.info.max_model_len
    if len(prompt_ids) >= max_model_len:
        raise ContextLengthError(max_model_len, len(prompt_ids), config.max_tokens)
    params = SamplingParams(
        max_tokens=min(config.max_tokens, max_model_len - len(prompt_ids)),
        seed=secrets.randbits(53) if config.seed is None else config.seed % 2**64,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        eos_token_id=tokenizer.eos_token_id,
    )
    engine, decoder = assembled.engine, StreamDecoder(tokenizer)
    engine.submit(SequenceRequest(seq_id=0, prompt_ids=prompt_ids, choice=0, params=params))
    _write(prompt)
    while engine.has_work:
        added = engine.step()
        for _, output in added.outputs:
            _write("".join(map(decoder.feed, output.token_ids)))
        for _, failure in added.failures:
            raise failure_error(failure.kind)
    _write(decoder.flush() + "\n")
    return 0


def warm_up() -> int:
    """Loading a runner compiles the CPU kernels, or finds them in the cache; each dtype has its own, also
    of int8."""
    _prepare_process()
    from server.assembly import assemble
    from server.tokenizer import load_tokenizer

    for dtype in CPU_DTYPES:
        for quantization in get_args(Quantization):
            given = EngineConfig(device="cpu", dtype=dtype, quantization=quantization)
            config = resolve_engine(given)
            assemble(config, load_tokenizer(config.model))
    return 0


def _prepare_process() -> None:
    """Before torch and numba are imported: they read the environment once."""
    check_kernels_are_ours()
    os.environ.update(child_environment())


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
