"""How much a step takes, on a device where a step's time grows with its tokens: a CPU. Pure functions of
counts. (A GPU's step takes as long with one row as with many, so everybody is in each.)

Whoever comes waits for the end of the step that runs, and is computed in the next: with all rows in every
step, and whole prompts beside them, that is long. So

- a prompt's chunk takes no longer than the generated tokens beside it, or a few times as long while several
  prompts wait; and
- where several tenants have work, a step takes a *turn*. Tenants share it; one that has more rows than its
  share lets them take turns.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

from server.engine.sequence_state import SequenceState
from server.engine.tenants import Tenant

_MIN_TURN_ROWS = 16


class Wanted(NamedTuple):
    """What one behind, or one that is next, has to compute."""

    tenant: Tenant
    num_prompt_tokens: int
    num_generated_tokens: int  # a replay's

    @classmethod
    def of(cls, seq: SequenceState, num_computed: int) -> Wanted:
        num_prompt = max(seq.num_prompt_tokens - num_computed, 0)
        return cls(seq.tenant, num_prompt, seq.num_tokens - num_computed - num_prompt)


@dataclass(frozen=True, slots=True)
class StepShape:
    turn_rows: int  # generated tokens of a step, or as much, where several tenants have work
    spare_rows: int = 0  # that a tenant with more than half of all leaves to others
    min_chunk: int = 32  # prompt tokens beside few generated ones, at least
    prompt_per_decode: int = 3  # prompt tokens that take as long as a generated one, or less
    most_prompts: int = 1  # of one tenant, that each make a step so much longer

    @classmethod
    def of_rows(
        cls, max_num_seqs: int, min_chunk: int, prompt_per_decode: int, most_prompts: int
    ) -> StepShape:
        """An eighth of the rows is spare: to take a row from somebody costs a replay."""
        spare_rows = max_num_seqs // 8
        turn_rows = max(_MIN_TURN_ROWS, max_num_seqs - spare_rows)
        return cls(turn_rows, spare_rows, min_chunk, prompt_per_decode, most_prompts)

    def chunk(self, num_decodes: int, num_late: int, most: int) -> int:
        """Prompt tokens beside so many generated ones, in a step of at most `most` tokens. Rows that stay
        empty cost more than gaps: with several that wait to generate, chunks are longer."""
        if not num_decodes:
            return most
        chunk = max(self.min_chunk, self.prompt_per_decode * num_decodes)
        return min(most - num_decodes, chunk * max(1, min(num_late, self.most_prompts)))

    def affordable(self, wanted: Wanted, cost: int) -> int:
        """As many tokens as may cost so much; a prompt's costs 1."""
        num = min(wanted.num_prompt_tokens, cost)
        return num + min(wanted.num_generated_tokens, -(-(cost - num) // self.prompt_per_decode))

    def cost(self, wanted: Wanted, chunk: int) -> int:
        num = min(wanted.num_prompt_tokens, chunk)
        return num + self.prompt_per_decode * (chunk - num)

    def share(
        self, caught_up: list[SequenceState], wanted: list[Wanted], num_tenants: int, most: int
    ) -> tuple[list[SequenceState], list[int], int]:
        """Of a step of at most `most` tokens: who of `caught_up` draws one, a chunk for each of `wanted`, and
        the tokens of all chunks together. Some draw beside any chunk: no prompt holds everybody up."""
        few = self.turn_rows // 4
        chunks, left, has_light = self._chunks(wanted, num_tenants)
        caught_up = take_turns(
            caught_up, few if has_light else max(left // self.prompt_per_decode, few)
        )
        budget = sum(chunks)
        if not has_light:
            budget = max(budget, self.prompt_per_decode * (self.turn_rows - len(caught_up)))
        return caught_up, chunks, min(budget, most - len(caught_up))

    def _chunks(self, wanted: list[Wanted], num_tenants: int) -> tuple[list[int], int, bool]:
        """The poorest tenant first. A turn, if it has less than its share of rows, and is light; else half of
        one, for its own rows wait meanwhile. What is left of the turn; whether one is light."""
        turn = left = self.prompt_per_decode * self.turn_rows
        half = max(turn // 2, 1)
        chunks, has_light = [0] * len(wanted), False
        for index in sorted(range(len(wanted)), key=lambda i: wanted[i].tenant.counter):
            one = wanted[index]
            is_light = 2 * one.tenant.num_rows * num_tenants <= self.turn_rows
            chunks[index] = self.affordable(one, max(left if is_light else min(left, half), 0))
            left -= self.cost(one, chunks[index])
            has_light |= is_light
        return chunks, left, has_light


def without(behind: list[SequenceState], running: list[SequenceState]) -> list[SequenceState]:
    """Those of `running` that have caught up. Mostly the one behind is the last, or there is none."""
    if not behind:
        return running
    if behind == running[-1:]:
        return running[:-1]
    late = set(behind)
    return [seq for seq in running if seq not in late]


def take_turns(caught_up: list[SequenceState], num: int) -> list[SequenceState]:
    """Those of `caught_up` (in order of admission) that are in this step, in the same order: at most `num`,
    but one of each tenant. Max-min fair between tenants; each one's go round in order of admission."""
    if len(caught_up) <= num:
        return caught_up
    of_tenant: dict[Tenant, list[SequenceState]] = {}
    for seq in caught_up:
        of_tenant.setdefault(seq.tenant, []).append(seq)
    chosen: set[int] = set()
    for place, tenant in enumerate(sorted(of_tenant, key=lambda t: len(of_tenant[t]))):
        sequences = of_tenant[tenant]
        share = max(1, (num - len(chosen)) // (len(of_tenant) - place))
        if share < len(sequences):
            sequences = _next_in_turn(tenant, sequences, share)
        chosen.update(seq.row for seq in sequences)
    return [seq for seq in caught_up if seq.row in chosen]


def _next_in_turn(tenant: Tenant, sequences: list[SequenceState], num: int) -> list[SequenceState]:
    first = bisect_right(sequences, tenant.turn, key=lambda seq: seq.admission)
    found = (sequences[first:] + sequences[:first])[:num]
    tenant.turn = found[-1].admission
    return found
