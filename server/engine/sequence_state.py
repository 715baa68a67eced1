"""What the engine keeps of one sequence: counters and lists. Knows no step, device or clock.

token_ids   [ prompt ............... | generated ........ | in flight ]
              cached | computed  ^ num_computed_tokens                ^ num_tokens
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.board import packed_key
from server.engine.stop_rules import StopRules
from server.sequence import Grammar, SamplingParams, SequenceKey, SequenceRequest

if TYPE_CHECKING:
    from server.engine.prompt_lookup import PromptLookup
    from server.engine.tenants import Tenant

GENERATED_WEIGHT = 2  # what a generated token counts for its tenant; a prompt's counts one


@dataclass(slots=True, eq=False)
class SequenceState:
    """One sequence from submit to its end. Only the scheduler and the engine write to it."""

    owner: int  # the connection that submitted it
    seq_id: int
    choice: int
    params: SamplingParams
    cache_salt: str
    priority: int
    tenant_name: str
    grammar: Grammar | None
    stop: StopRules
    token_ids: list[int]  # prompt, then the generated ids that have arrived
    num_prompt_tokens: int
    num_tokens: int  # a count apart from the ids: a token counts from the dispatch that samples it
    num_computed_tokens: int = 0  # KV written, or written by a step already dispatched
    block_table: list[int] = field(default_factory=list)
    row: int = -1  # -1: waiting, or everything dispatched
    due_at: int = 0  # num_computed_tokens with which its table is full or everything is dispatched
    num_registered_blocks: int = 0  # of block_table, known to the prefix cache
    link: bytes = b""  # the prefix cache's name for the registered blocks
    board_key: bytes = b""  # `key`, as the board has it
    num_cached_tokens: int | None = None  # found in the cache at the first admission
    num_preemptions: int = 0
    arrival: int = 0  # serial number of its submission
    admission: int = 0  # serial number of the last one
    num_charged: int = 0  # of its tokens, by weight, for which its tenant need not be charged again
    submitted_s: float = 0.0
    queue_s: float | None = None  # from its submission to the step that it was first part of
    is_first_sent: bool = False  # FirstOutput has left
    next_logprob: int = 1  # the prompt position whose logprob has not left yet
    allowed: bytes | None = None  # the ids that its next token is drawn from; None: all
    row_mask: bytes | None = None  # what its row holds of that
    is_gated: bool = False  # `allowed` depends on the ids before, all of them
    is_ready: bool = True  # False: `allowed` waits for the last token, or for its grammar
    has_ended: bool = False  # finished or aborted: what still arrives for it is dropped
    is_tainted: bool = False  # it failed in a step, and nobody finds its blocks any more
    lookup: PromptLookup | None = None  # while it runs, where drafts may be worth it
    tenant: Tenant = field(init=False)  # set by the scheduler, from its submission to its end

    @classmethod
    def from_request(
        cls, request: SequenceRequest, owner: int, max_model_len: int
    ) -> SequenceState:
        """With emitted ids it is as one that was preempted behind them."""
        num_prompt_tokens = len(request.prompt_ids)
        token_ids = request.prompt_ids + request.emitted_ids  # siblings may come with one list
        is_replay = bool(request.emitted_ids)
        return cls(
            owner=owner,
            seq_id=request.seq_id,
            choice=request.choice,
            params=request.params,
            cache_salt=request.cache_salt,
            priority=request.priority,
            tenant_name=request.tenant,
            grammar=request.grammar,
            stop=StopRules(
                request.params, num_prompt_tokens=num_prompt_tokens, max_model_len=max_model_len
            ),
            token_ids=token_ids,
            num_prompt_tokens=num_prompt_tokens,
            num_tokens=len(token_ids),
            board_key=packed_key((owner, request.seq_id)),
            num_cached_tokens=0 if is_replay else None,
            is_first_sent=is_replay,
            next_logprob=num_prompt_tokens if is_replay else 1,
            num_charged=GENERATED_WEIGHT * len(token_ids) + num_prompt_tokens * is_replay,
        )

    @property
    def key(self) -> SequenceKey:
        return self.owner, self.seq_id

    @property
    def max_num_slots(self) -> int:
        """KV slots at its longest: the last generated token is never an input."""
        return max(self.num_prompt_tokens, self.stop.max_num_tokens - 1)

    @property
    def is_behind(self) -> bool:
        """It has more to compute than its last token."""
        return self.num_computed_tokens < max(self.num_prompt_tokens, self.num_tokens - 1)

    @property
    def is_all_dispatched(self) -> bool:
        """Nothing is left to schedule; results may still be on their way."""
        return self.num_computed_tokens == self.max_num_slots

    @property
    def is_beyond_its_end(self) -> bool:
        """Its generated ids hold one that ended it, or there are no fewer than it may have."""
        stop, token_ids = self.stop, self.token_ids
        if len(token_ids) >= stop.max_num_tokens:
            return True
        if stop.stop_ids.isdisjoint(token_ids[self.num_prompt_tokens :]):
            return False
        ends = range(self.num_prompt_tokens, len(token_ids))
        return any(stop.check(token_ids[i], i + 1).finish_reason is not None for i in ends)

    @property
    def can_read_cache(self) -> bool:
        """Logprobs of prompt tokens need the prompt's rows; once they have left, nothing does."""
        return self.params.prompt_logprobs is None or self.is_first_sent

    def restart(self) -> None:
        """Nothing is computed any more; the ids stay, also those still to arrive, and are replayed."""
        self.num_computed_tokens = 0
        self.num_registered_blocks = 0
        self.block_table = []
        self.row = -1
        self.row_mask = None
        self.lookup = None
