"""Puts an engine together: tokenizer's gaps, runner, blocks, scheduler. Imports torch and numba."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from server.board import Board
from server.budget import Part
from server.config import EngineConfig
from server.engine.block_manager import BlockManager
from server.engine.engine import Engine
from server.engine.prefix_cache import PrefixCache
from server.engine.scheduler import Scheduler
from server.engine.speculation import Speculation
from server.engine.step_shape import StepShape
from server.engine_memory import queue_parts
from server.errors import ModelError
from server.grammar.client import GrammarClient
from server.grammar.seam import GrammarMasks
from server.ipc.frames import EngineInfo
from server.model.config import read_config
from server.model_files import ModelFiles
from server.runner.load import LoadedRunner, build_runner
from server.startup import available_cores, engine_threads
from server.tokenizer import Tokenizer


class Assembled(NamedTuple):
    engine: Engine
    grammars: GrammarClient | None  # None: the model has no end token, so no grammar could end
    info: EngineInfo
    parts: tuple[Part, ...]  # the process's memory budget
    lines: list[str]  # what was chosen and why, for people


def assemble(
    config: EngineConfig, tokenizer: Tokenizer, board: Board | None = None, num_apis: int = 1
) -> Assembled:
    """`config.model` is a directory, `tokenizer` the one in it. `board` learns how the engine gets on.
    `num_apis` will be connected. Raises ConfigError."""
    vocab_size = read_config(ModelFiles(config.model, config.model_manifest)).vocab_size
    if tokenizer.num_tokens > vocab_size:
        raise ModelError(
            f"{config.model}: the tokenizer has {tokenizer.num_tokens} tokens, more than the "
            f"vocab_size {vocab_size} of config.json."
        )
    gaps = [i for i in range(vocab_size) if not tokenizer.is_token(i)]
    loaded = build_runner(config, gaps, engine_threads(available_cores(), num_apis), board)
    has_end = tokenizer.eos_token_id is not None
    manifest = config.model_manifest
    grammars = GrammarClient(config.model, vocab_size, manifest=manifest) if has_end else None
    engine = engine_of(loaded, gaps, grammars, board)
    num_ids = loaded.limits.max_num_seqs * loaded.limits.max_model_len
    queues = queue_parts(
        has_grammars=has_end,
        num_apis=num_apis,
        num_lookup_ids=num_ids if loaded.num_free_rows else 0,
    )
    parts = (*loaded.parts, *queues)
    return Assembled(engine, grammars, _info(loaded, parts), parts, loaded.lines)


def engine_of(
    loaded: LoadedRunner,
    gaps: Sequence[int] = (),
    grammars: GrammarMasks | None = None,
    board: Board | None = None,
) -> Engine:
    """An engine over a runner; needs no tokenizer. `gaps`: ids without a token."""
    num_seqs = loaded.limits.max_num_seqs
    scheduler = Scheduler(
        BlockManager(loaded.num_blocks, PrefixCache(loaded.config.block_size)),
        max_num_seqs=num_seqs,
        max_num_batched_tokens=loaded.limits.max_num_batched_tokens,
        max_model_len=loaded.limits.max_model_len,
        shape=StepShape.of_rows(num_seqs, *loaded.chunks) if loaded.chunks else None,
    )
    speculation = Speculation(scheduler, loaded.num_free_rows) if loaded.num_free_rows else None
    return Engine(
        scheduler,
        loaded.runner,
        loaded.vocab_size,
        no_tokens=gaps,
        grammars=grammars,
        board=board,
        speculation=speculation,
    )


def _info(loaded: LoadedRunner, parts: Sequence[Part]) -> EngineInfo:
    return EngineInfo(
        max_model_len=loaded.limits.max_model_len,
        vocab_size=loaded.vocab_size,
        max_num_seqs=loaded.limits.max_num_seqs,
        block_size=loaded.config.block_size,
        num_blocks=loaded.num_blocks,
        device=loaded.config.device,
        dtype=loaded.config.dtype,
        system_fingerprint=loaded.system_fingerprint,
        num_not_finite_tensors=loaded.num_not_finite_tensors,
        memory_limits={part.name: part.max_bytes for part in parts},
    )
