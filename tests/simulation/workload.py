"""What clients ask for: few tokens, common beginnings, every parameter that changes the path of a token."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from server.api.request.planning import Plan
from server.api.request.protocol import CompletionRequest, StreamOptions
from server.api.request.sampling import num_prompt_logprobs
from server.sequence import FailureKind, Grammar, SamplingParams
from tests.simulation.engine_process import Sizes
from tests.simulation.oracle import EOS, Shown, drawn, shown

_A, _B = [1, 2, 3, 4], [4, 3, 2, 1]
_STEMS: tuple[list[int], ...] = ([], _A, _B + _A + [1], _A + _A + [0], _A + _B)
_STOPS = ((), (), (), ("€",), ("ab", "b a"), ("\n", "a\n"))
_GRAMMARS = ("g", "h", "grammar_too_slow 2", "nothing 4", "grammar_invalid 0", "garbage 3")
_BAD_WORDS = ((), (), (), ((2,),), ((1, 2), (0, 0), (3, 3, 3)))


@dataclass(slots=True)
class Asked:
    """One request, and what its client must see of each choice."""

    plan: Plan
    kind: str  # "plain", "stream", "resumable"
    stops: tuple[str, ...]
    expected: list[Shown]
    failures: set[FailureKind]  # of its choices; any of them ends the request
    late_failures: set[
        FailureKind
    ]  # behind a stop string: they come unless the api finds that first
    is_impatient: bool = False
    key_name: str = "key"
    max_queue_s: float | None = None

    def __str__(self) -> str:
        plan = self.plan
        fields = plan.request.model_dump(exclude_none=True, exclude={"prompt"})
        return f"{plan.prompts[0]} {plan.params} {plan.grammar} {fields}"

    @property
    def is_poison(self) -> bool:
        """Whether it can stop an engine. Not every choice lives long enough."""
        return bool(self.plan.params.presence_penalty)


class Workload:
    """Draws requests that the sizes can serve."""

    def __init__(self, rng: Random, sizes: Sizes, *, poison: float) -> None:
        self._rng = rng
        self._sizes = sizes
        self._poison = poison
        self._max_slots = min((sizes.num_blocks - 1) * sizes.block_size, sizes.max_model_len)
        self._last: list[tuple[list[int], str]] = []  # conversations: what was said, and the salt

    def remember(self, asked: Asked) -> None:
        """Its text comes back as a prompt."""
        plan = asked.plan
        ids = drawn(
            tuple(plan.prompts[0]), 0, plan.params, plan.grammar, self._sizes.max_model_len
        ).ids
        self._last = [
            *self._last[-5:],
            (plan.prompts[0] + list(ids), plan.request.cache_salt or ""),
        ]

    def draw(self) -> Asked:
        rng = self._rng
        prompt, salt = self._prompt()
        room = self._max_slots - len(prompt)
        max_tokens = min(rng.choice((0, 1, 2, 3, 5, 8, 11, 14)), max(room, 1))
        return self._asked(prompt, salt, max_tokens, rng.choice((1, 1, 1, 2, 3)))

    def draw_large(self) -> Asked:
        """As long as fits, nothing shared: a few of them leave no block."""
        num_slots = self._max_slots - 1
        prompt = [6, 7] * (num_slots // 4)
        salt = f"only {self._rng.randrange(1 << 30)}"
        return self._asked(prompt, salt, num_slots + 1 - len(prompt), 1)

    def _prompt(self) -> tuple[list[int], str]:
        rng = self._rng
        if self._last and rng.random() < 0.25:
            said, salt = rng.choice(self._last)
            return said[: self._max_slots - 3], salt
        tail = [rng.randrange(3) for _ in range(rng.randint(1, 7))]
        prompt = (rng.choice(_STEMS) + tail)[: self._max_slots - 2]
        return prompt, rng.choice(("", "", "tenant"))

    def _asked(self, prompt: list[int], salt: str, max_tokens: int, n: int) -> Asked:
        rng = self._rng
        kind = rng.choice(("plain", "stream", "resumable", "resumable"))
        mood = rng.random()
        is_poison = mood < self._poison
        is_failing = not is_poison and mood > 0.94
        stops = () if is_poison or is_failing else rng.choice(_STOPS)
        has_echo = not stops and rng.random() < 0.25
        source = None if is_poison or is_failing or rng.random() < 0.75 else rng.choice(_GRAMMARS)
        if source is not None and " " in source:
            stops = ()
        logprobs = rng.choice((None, 0))
        has_stop_ids = not is_poison and rng.random() < 0.4
        params = SamplingParams(
            max_tokens=max_tokens,
            seed=rng.randrange(3),
            min_tokens=0 if stops else rng.choice((0, 0, 0, 2)),
            eos_token_id=rng.choice((None, EOS)) if has_stop_ids else None,
            stop_token_ids=rng.choice(((), (5,), (5, 6))) if has_stop_ids else (),
            logprobs=logprobs,
            allowed_token_ids=rng.choice((None, None, None, (0, 1, 2, 5))),
            bad_words=rng.choice(_BAD_WORDS),
            presence_penalty=rng.randint(1, 6) if is_poison else 0,
            frequency_penalty=rng.randint(1, 6) if is_failing else 0,
        )
        request = CompletionRequest(
            prompt=prompt,
            stream=kind != "plain",
            n=n,
            echo=has_echo,
            logprobs=params.logprobs,
            prompt_logprobs=rng.choice((None, None, None, 0)) if kind == "plain" else None,
            stream_options=StreamOptions(
                include_usage=rng.random() < 0.5, continuous_usage_stats=rng.random() < 0.2
            )
            if kind != "plain"
            else None,
            stop=list(stops) or None,
            cache_salt=salt or None,
            priority=rng.choice((0, 0, 0, -1, 3)),
        )
        grammar = None if source is None else Grammar("regex", source)
        plan = Plan(
            request, [prompt], n, params.seed, params, num_prompt_logprobs(request), grammar
        )
        return self._expected(plan, kind, stops)

    def _expected(self, plan: Plan, kind: str, stops: tuple[str, ...]) -> Asked:
        prompt = tuple(plan.prompts[0])
        results = [
            drawn(prompt, choice, plan.params, plan.grammar, self._sizes.max_model_len)
            for choice in range(plan.n)
        ]
        has_echo = bool(plan.request.echo)
        views = [shown(result, prompt, stops, has_echo=has_echo) for result in results]
        failing = [(result.failure, view) for result, view in zip(results, views, strict=True)]
        failures = {kind for kind, view in failing if kind and view.finish_reason is None}
        late_failures = {kind for kind, view in failing if kind and view.finish_reason is not None}
        return Asked(
            plan,
            kind,
            stops,
            views,
            failures,
            late_failures,
            is_impatient=self._rng.random() < 0.08,
            key_name=self._rng.choice(("anna", "ben")),
            max_queue_s=self._rng.choice((None, None, None, 0.003, 0.02, 0.2)),
        )
