"""The embedded model in this process, no server: what it makes of the tasks' texts, token by token.

A text is scored by making the engine generate it: a bias forces the next token, and its logprob (of the raw
logits) is noted. That is another way through the engine than `echo`, which reads the logprobs of a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from server.assembly import assemble
from server.config import EngineConfig
from server.sequence import SamplingParams, SequenceOutput, SequenceRequest
from server.startup import resolve_engine
from server.tokenizer import load_tokenizer

_FORCED = 1e6  # added to one logit: no other token can win


class Score(NamedTuple):
    """As lm-evaluation-harness counts: of a continuation, given its context."""

    loglikelihood: float
    is_greedy: bool  # every token is the most likely one


class OfflineModel:
    def __init__(self) -> None:
        config = resolve_engine(EngineConfig(device="cpu"))
        self.tokenizer = load_tokenizer(config.model)
        self.engine = assemble(config, self.tokenizer).engine

    def score(self, context: Sequence[int], continuation: Sequence[int]) -> Score:
        loglikelihoods, is_greedy = [], True
        for i, token_id in enumerate(continuation):
            params = SamplingParams(
                max_tokens=1, seed=0, temperature=0, logit_bias=((token_id, _FORCED),), logprobs=1
            )
            (output,) = self._run([*context, *continuation[:i]], params)
            assert output.token_ids == [token_id]
            assert output.logprobs is not None
            loglikelihoods.append(output.logprobs[0].logprob)
            is_greedy &= output.logprobs[0].top_logprobs[0] == output.logprobs[0].logprob
        return Score(sum(loglikelihoods), is_greedy)

    def generate(self, context: Sequence[int], max_tokens: int, until: Sequence[str]) -> str:
        """The most likely tokens, up to the first of `until`."""
        eos_token_id = self.tokenizer.eos_token_id
        params = SamplingParams(max_tokens, seed=0, temperature=0, eos_token_id=eos_token_id)
        outputs = self._run(context, params)
        text = self.tokenizer.decode(i for output in outputs for i in output.token_ids)
        return text[: min([text.find(stop) for stop in until if stop in text], default=len(text))]

    def _run(self, prompt_ids: Sequence[int], params: SamplingParams) -> Iterator[SequenceOutput]:
        self.engine.submit(SequenceRequest(0, list(prompt_ids), choice=0, params=params))
        while self.engine.has_work:
            yield from (output for _, output in self.engine.step().outputs)
