"""The frames: length-prefixed msgpack of the tagged structs below. Schemas are closed.

api -> engine   Submit, Abort
engine -> api   Welcome once after connecting, then one StepOutput per step that concerns this api,
                and at least one a second when idle (so that silence means a stall)
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from server.sequence import (
    Death,
    PromptLogprobs,
    SequenceFailure,
    SequenceOutput,
    SequenceRequest,
)


class EngineInfo(msgspec.Struct, frozen=True):
    """What an api process must know about the engine it is connected to."""

    max_model_len: int  # tokens
    vocab_size: int  # width of the logits: every id at the door must be below it
    max_num_seqs: int
    block_size: int
    num_blocks: int
    device: str
    dtype: str
    system_fingerprint: str
    num_not_finite_tensors: int = 0  # of the weights: those that hold a NaN or an infinity
    memory_limits: dict[str, int] = {}  # bytes, by part: the engine's share of the memory budget


class EngineStats(NamedTuple):
    """Gauges and counters since the engine's start."""

    num_steps: int
    num_step_tokens: int  # token rows of the steps so far, prompts' and generated ones'
    num_running: int
    num_waiting: int
    num_used_blocks: int
    num_prompt_tokens: int  # computed or found in the cache
    num_generated_tokens: int
    num_preemptions: int
    num_cache_queries: int  # prompt tokens looked up in the prefix cache
    num_cache_hits: int  # of them found
    num_replayed_tokens: int = 0  # rows computed again, after a crash or a preemption
    num_waiting_tokens: int = 0  # rows that those without a row ask for: prompts and max_tokens
    num_owed_tokens: int = 0  # the same of all sequences: what is still to be computed at most
    busy_s: float = 0.0  # time in steps, of the engine's clock
    num_draft_tokens: int = 0  # computed in the hope that they are what is drawn
    num_accepted_tokens: int = 0  # of them drawn


class Welcome(msgspec.Struct, frozen=True, tag="welcome", array_like=True):
    info: EngineInfo
    engine: int = 0  # serial number of this engine's life
    owner: int = 0  # number of this connection in it: what `suspects` name
    deaths: list[Death] = []  # of the lives before, oldest first: the last few


class Submit(msgspec.Struct, frozen=True, tag="submit", array_like=True):
    sequences: list[SequenceRequest]


class Abort(msgspec.Struct, frozen=True, tag="abort", array_like=True):
    seq_ids: list[int]  # unknown or finished ids are ignored


class StepOutput(msgspec.Struct, frozen=True, tag="step", array_like=True):
    outputs: list[SequenceOutput]
    stats: EngineStats
    prompt_logprobs: list[PromptLogprobs] = []  # to be applied before `outputs`
    failures: list[SequenceFailure] = []
    memory: dict[str, int] = {}  # bytes held now, by part of `memory_limits`; in heartbeats only


ToEngine = Submit | Abort
ToApi = Welcome | StepOutput
