"""llama.cpp's library through llama-cpp-python's bindings: `llama_decode` over a batch of sequences, greedy.

The bindings' own class decodes one sequence; this loop decodes many, as llama.cpp's batched example does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

_CONTEXT_PER_STREAM = 512  # tokens; no run needs more


def load(
    path: str, form: str, threads: int, max_streams: int
) -> Callable[[list[list[int]], int], list[list[int]]]:
    from llama_cpp import llama_cpp as lib

    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx = _CONTEXT_PER_STREAM * max_streams
    params.n_batch = params.n_ubatch = 1024
    params.n_seq_max = max_streams
    if form == "f32":
        params.type_k = params.type_v = lib.GGML_TYPE_F32  # its default is fp16
    params.n_threads = params.n_threads_batch = threads
    context = lib.llama_init_from_model(model, params)
    if not model or not context:
        raise RuntimeError(f"llama.cpp does not load {path}")
    vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    batch = lib.llama_batch_init(1024, 0, 1)

    def decode(tokens: list[tuple[int, int, int, bool]]) -> list[int]:
        """(token, position, sequence, wants logits) of each row -> the likeliest next tokens."""
        batch.n_tokens = len(tokens)
        for row, (token, position, sequence, has_logits) in enumerate(tokens):
            batch.token[row], batch.pos[row] = token, position
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
            batch.logits[row] = has_logits
        if lib.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        wanted = [row for row, (*_, has_logits) in enumerate(tokens) if has_logits]
        return [_likeliest(lib, context, row, vocab_size) for row in wanted]

    def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        lib.llama_memory_clear(lib.llama_get_memory(context), False)
        rows = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        outputs = [[token] for token in decode(rows)]
        for step in range(num_tokens - 1):
            rows = [
                (output[-1], len(prompt) + step, sequence, True)
                for sequence, (prompt, output) in enumerate(zip(prompts, outputs, strict=True))
            ]
            for output, token in zip(outputs, decode(rows), strict=True):
                output.append(token)
        return outputs

    return generate


def _likeliest(lib: Any, context: Any, row: int, vocab_size: int) -> int:
    logits = lib.llama_get_logits_ith(context, row)
    array = np.ctypeslib.as_array(
        ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (vocab_size,)
    )
    return int(array.argmax())
