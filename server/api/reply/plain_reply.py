"""A whole plain reply: which choices it shows, and its JSON in parts that take little time to make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from server.api.reply.choice_stream import ChoiceStream, Delta
from server.api.reply.plain_choice import PlainChoice
from server.api.reply.plain_prompt import PlainPrompt
from server.api.reply.replies import Head, Usage
from server.api.request.planning import Plan

_encode = msgspec.json.Encoder().encode


class PlainReply:
    """Collects all candidates; shows those that best_of leaves."""

    def __init__(
        self,
        plan: Plan,
        head: Head,
        candidates: Sequence[ChoiceStream],
        prompts: Sequence[PlainPrompt],
    ) -> None:
        self._plan = plan
        self._head = head
        self._candidates = candidates
        self._prompts = prompts
        self._choices = [PlainChoice() for _ in candidates]

    def add(self, index: int, delta: Delta) -> None:
        """`index` is the candidate's: prompt index x candidates of a prompt + candidate."""
        self._choices[index].add(delta)

    def parts(self, usage: Usage) -> Iterator[bytes]:
        """To be joined, or sent one by one: with 20 logprobs for long prompts they are many MB."""
        head = self._head
        yield b'{"id":%s,"object":"text_completion","created":%d,"model":%s,"choices":[' % (
            _encode(head.id),
            head.created,
            _encode(head.model),
        )
        for index, candidate in enumerate(self._shown()):
            if index:
                yield b","
            prompt = self._prompts[candidate // self._plan.n]
            yield from self._choices[candidate].parts(index, prompt)
        yield b'],"usage":%s,"system_fingerprint":%s,"seed":%d}' % (
            _encode(usage),
            _encode(head.system_fingerprint),
            head.seed,
        )

    def _shown(self) -> list[int]:
        """Of each prompt the best candidates, the best first; all in their order if all are shown."""
        n, num_shown = self._plan.n, self._plan.num_returned
        starts = range(0, len(self._choices), n)
        if n == num_shown:
            return list(range(len(self._choices)))
        return [i for start in starts for i in self._ranked(start, n)[:num_shown]]

    def _ranked(self, start: int, n: int) -> list[int]:
        """Equal ones in their order: sorting is stable."""
        candidates = self._candidates
        return sorted(range(start, start + n), key=lambda i: -candidates[i].mean_logprob)
