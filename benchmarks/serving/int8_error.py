"""What bf16 and int8 cost in exactness: bits per byte of a held-out text, and distances of logits.

The text (`--text`) is judged by the embedded model as its card's figure was found: windows of the whole
context every half of it. 124M random weights have no text: their logits are held against fp32's.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.random_gpt2 import write_random_gpt2
from benchmarks.report import Report
from server.config import EngineConfig
from server.startup import available_cores, child_environment

if TYPE_CHECKING:
    from torch import Tensor

    from server.model.gpt import GPT

BLOCK_SIZE = 16
RANDOM_TOKENS = 256
MAX_WORSE = 0.005  # of fp32's bits per byte
CASES = {  # name: dtype, quantization
    "fp32": ("float32", "none"),
    "bf16": ("bfloat16", "none"),
    "int8, rest fp32": ("float32", "int8"),
    "int8, rest bf16": ("bfloat16", "int8"),
}


class Judge:
    """Logits of whole sequences, each alone, as one prompt."""

    def __init__(self, model: GPT, num_tokens: int) -> None:

        from server.model.kv_cache import KVCache

        blocks = -(-num_tokens // BLOCK_SIZE)
        self._model = model
        self._cache = KVCache.allocate(model.config, blocks, BLOCK_SIZE, model.dtype)
        self._table = np.arange(blocks, dtype=np.int32)[None]

    def logits(self, ids: Tensor) -> Tensor:
        """[len(ids), vocab_size] fp32."""
        import torch

        from server.model.inputs import StepInputs

        count = len(ids)
        ints = partial(np.array, dtype=np.int32)
        places = np.arange(count)
        inputs = StepInputs(
            token_ids=ids.numpy(),
            positions=places,
            slot_mapping=places,
            num_prefill_tokens=count,
            cu_seqlens_q=ints([0, count]),
            prefill_seq_lens=ints([count]),
            prefill_rows=ints([0]),
            seq_lens=ints([]),
            decode_rows=ints([]),
            block_tables=self._table,
        )
        hidden = self._model.forward(inputs, self._cache)
        out = torch.empty(count, self._model.config.vocab_size)
        self._model.logits(hidden, out.numpy())
        return out

    def summed_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        from server.training.evaluate import NOT_SCORED

        losses = [
            cross_entropy(
                self.logits(ids).double(), wanted, ignore_index=NOT_SCORED, reduction="sum"
            )
            for ids, wanted in zip(inputs, targets, strict=True)
            if (wanted != NOT_SCORED).any()
        ]
        return torch.stack(losses).sum() if losses else torch.zeros(())


def _load(folder: Path, case: str) -> GPT:
    import torch

    from server.model.load import load_model

    dtype, quantization = CASES[case]
    return load_model(folder, getattr(torch, dtype), None, quantization)  # type: ignore[arg-type]


def _bits_per_byte(text: Path, report: Report) -> None:
    from server.startup import resolve_engine
    from server.training.bpe import encode_documents, load_tokenizer
    from server.training.data import read_documents
    from server.training.evaluate import HeldOut, careful_bits_per_byte

    folder = Path(resolve_engine(EngineConfig()).model)  # the embedded model
    documents = read_documents(text)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    num_bytes = sum(len(document.encode()) for document in documents)
    held_out = HeldOut(encode_documents(tokenizer, documents), num_bytes)
    report.figures["held_out_bytes"] = num_bytes
    report.figures["held_out_tokens"] = len(held_out.tokens)
    exact = 0.0
    for case in CASES:
        model = _load(folder, case)
        context = model.config.n_positions
        found = careful_bits_per_byte(Judge(model, context).summed_loss, held_out, context)
        exact = exact or found
        worse = found / exact - 1
        report.figures[f"{case}_bits_per_byte"] = found
        report.figures[f"{case}_worse"] = worse
        report.add("embedded", case, f"{found:.5f} bits per byte", f"{100 * worse:+.3f} %")


def _random_logits(report: Report) -> None:
    import torch

    with tempfile.TemporaryDirectory() as name:
        folder = write_random_gpt2(Path(name))
        exact = None
        for case in CASES:
            model = _load(folder, case)
            generator = torch.Generator().manual_seed(1)
            ids = torch.randint(0, model.config.vocab_size, (RANDOM_TOKENS,), generator=generator)
            found = Judge(model, RANDOM_TOKENS).logits(ids).double()
            exact = found if exact is None else exact
            cosine = torch.nn.functional.cosine_similarity(found, exact).min().item()
            error = ((found - exact).abs().amax(1) / exact.abs().amax(1)).max().item()
            report.figures[f"124M_{case}_cosine"] = cosine
            report.figures[f"124M_{case}_max_relative"] = error
            report.add("random 124M", case, f"cosine {cosine:.6f}", f"{100 * error:.3f} % at most")


def run(text: Path | None = None) -> Report:
    os.environ.update(child_environment())  # before torch and numba are imported
    from kernels.cpu.threads import set_threads

    set_threads(available_cores())
    report = Report(
        "int8_error",
        "bf16 and int8 against fp32: held-out text, and logits of a row against its largest",
        ("model", "numbers", "found", "against fp32"),
    )
    parts: list[Callable[[], Any]] = [partial(_random_logits, report)]
    if text is not None:
        parts.insert(0, partial(_bits_per_byte, text, report))
    for part in parts:
        part()
    return report
