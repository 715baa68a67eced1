"""The seam between engine and runner: what a step is told, and what comes back. No torch in here.

The runner keeps a stable *row* per running sequence (its token ids, block table and sampling
parameters), so a step only says what changed. The same data fits a runner whose rows live on a GPU.

    token_ids of a row   [ prompt .................. | generated ....... ]
                           ^ num_computed_tokens
                           |<- num_scheduled_tokens ->|      one step's share

Kind belongs to the token: positions below `num_prompt_tokens` are prompt rows (prefill attention, even
in a chunk of one), the others generated rows (decode attention, even many at once: a replay).
Inside a layer, K and V of every row of the step are written before any row's attention reads.

Steps run in the order of dispatch, while the results of earlier ones may still be on their way:

    dispatch 0 | dispatch 1 | result 0 | dispatch 2 | result 1 ...      max_steps_in_flight = 2

So a batch may give a row or a block to another sequence although a step in flight still uses it, and a
row's sampled token is its next step's input without having visited the host.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from server.sequence import FailureKind, PromptLogprobs, SamplingParams, TokenLogprobs


class NewRow(NamedTuple):
    """A row is (re)filled: a sequence was admitted, or came back after a preemption."""

    row: int  # 0 <= row < max_num_seqs
    token_ids: list[int]  # prompt + all that were drawn so far; copied by `dispatch`
    num_prompt_tokens: int
    choice: int
    params: SamplingParams


class NewBlocks(NamedTuple):
    """Block ids written to a row's block table from index `start` on. The row may sit the step out."""

    row: int
    start: int
    block_ids: list[int]


class RowMask(NamedTuple):
    """The ids that a row may draw, from this step on, until another mask or a refill of the row.

    At most one of a row in a step. Where min_tokens or logits that are not finite leave none of them,
    the lowest one is drawn: what comes out of a row always fits its mask.
    One bit per id, little-endian in uint32 words: ceil(vocab_size / 32) * 4 bytes, at least one bit set.
    A row without one may draw every id that the tokenizer has.
    """

    row: int
    allowed: bytes


class ScheduledRow(NamedTuple):
    """A row's share of a step: positions num_computed_tokens .. + num_scheduled_tokens - 1."""

    row: int
    num_computed_tokens: int
    num_scheduled_tokens: int
    is_sampling: bool  # it ends with the row's last token, or drafts behind it: a token is drawn


class Drafts(NamedTuple):
    """Ids that may follow a row's last token, at least one. Its share of the step is that token and these,
    all of them generated rows.

    A token is drawn from the last token; then, as long as the one drawn is the one drafted, from the draft
    that stands there. So each draw sees the row as it is without drafts: its ids, penalties, min_tokens,
    mask and noise. A row that would fail behind a draft ends in front of it instead: its next step finds
    that out again. A runner may look at fewer drafts than it was given.
    """

    row: int
    token_ids: list[int]


@dataclass(slots=True)
class StepBatch:
    """One step. Applied in this order: new_rows, new_blocks, masks, then `scheduled` is computed."""

    step: int
    new_rows: list[NewRow] = field(default_factory=list)
    new_blocks: list[NewBlocks] = field(default_factory=list)
    masks: list[RowMask] = field(default_factory=list)
    scheduled: list[ScheduledRow] = field(default_factory=list)
    # At most one of a row, which draws. Only for a runner with one step in flight.
    drafts: list[Drafts] = field(default_factory=list)


class Further(NamedTuple):
    """What was drawn behind the drafts of a row that were drawn, too: one token for each of those."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs]  # one per token, where the params ask


@dataclass(slots=True)
class StepResult:
    """What a step drew. Sampled tokens are already appended to their rows inside the runner."""

    token_ids: list[int]  # one per scheduled row with is_sampling, in the batch's order
    logprobs: dict[int, TokenLogprobs]  # row -> of its sampled token, where the params ask
    # row -> of the prompt tokens AT the positions p that its chunk predicts (from p - 1): a chunk [a, b)
    # yields a+1 .. min(b, num_prompt_tokens - 1), where the params ask and that is any. seq_id is left
    # to the engine: 0
    prompt_logprobs: dict[int, PromptLogprobs]
    # row -> why: its token id counts for nothing; the other rows are what they would be without it.
    # What fails as a whole is an exception out of `dispatch` or `result`, and the process ends.
    failed: dict[int, FailureKind] = field(default_factory=dict)
    further: dict[int, Further] = field(
        default_factory=dict
    )  # row -> behind its token of token_ids


class StepHandle(Protocol):
    """A step that was dispatched."""

    def result(self) -> StepResult:
        """Wait for the step and return what it drew. Called once, in the order of dispatch."""
        ...


class Runner(Protocol):
    """A device. `dispatch` and `result` are two calls, so that a GPU can run one step ahead."""

    # Steps dispatched before the oldest one's result is asked for: 1 where nothing runs beside the host.
    max_steps_in_flight: int

    def dispatch(self, batch: StepBatch) -> StepHandle:
        """Start a step. Steps run in the order of dispatch; the batch is not kept."""
        ...
