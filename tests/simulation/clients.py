"""Clients: each checks what it sees with every byte, and says at the end how it went.

PlainClient      one reply
PiecesClient     a stream without ids, as far as its run: reads late, so pieces are joined
ResumingClient   a stream with ids: is cut off, stalls, comes back, sometimes twice or too late
"""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

from server.api.parking import Parking
from server.api.reply.choice_stream import Delta
from server.api.reply.plain_reply import PlainReply
from server.api.reply.run import Run
from server.api.sequence_book import MAX_FAULTS
from server.errors import RequestError
from tests.simulation.api_process import PARK_ABOVE_BYTES, ApiProcess
from tests.simulation.clock import Clock
from tests.simulation.oracle import prompt_logprobs
from tests.simulation.workload import Asked

load = msgspec.json.Decoder().decode


class Client:
    """`outcome`: "" while it is not over; then "ok", "failed", "gone" (it left), "expired" or "lost" (the api
    died)."""

    def __init__(self, clock: Clock, rng: Random, api: ApiProcess, asked: Asked) -> None:
        self.clock, self.rng, self.api, self.asked = clock, rng, api, asked
        self.outcome = ""
        self.texts = [""] * asked.plan.n
        self.logprobs: list[list[float | None]] = [[] for _ in self.texts]
        self.reasons: list[tuple[Any, Any]] = [(None, None)] * asked.plan.n
        self.num_tokens: int | None = None
        self.error: Exception | None = None
        self._num_swaps = api.num_swaps

    def over(self, outcome: str) -> None:
        assert not self.outcome, "it was over"
        self.outcome = outcome

    def add(self, index: int, text: str, logprobs: list[float | None]) -> None:
        """I12, I16, of every prefix."""
        self.texts[index] += text
        expected = self.asked.expected[index].text
        assert expected.startswith(self.texts[index]), "a text that is another's"
        self.logprobs[index] += logprobs

    def complete(self) -> None:
        """I12, I13, I16."""
        asked = self.asked
        assert not asked.failures, f"it was to fail: {asked.failures}"
        for index, expected in enumerate(asked.expected):
            assert self.texts[index] == expected.text
            assert self.reasons[index] == (expected.finish_reason, expected.stop_reason)
            if asked.plan.params.logprobs is not None:
                assert self.logprobs[index] == self._logprobs(index)
        if self.num_tokens is not None:
            assert self.num_tokens == sum(shown.num_tokens for shown in asked.expected), "I13"
        self.over("ok")

    def _logprobs(self, index: int) -> list[float | None]:
        found: list[float | None] = list(self.asked.expected[index].logprobs)
        if self.asked.plan.request.echo:
            return [None, *prompt_logprobs(tuple(self.asked.plan.prompts[0])), *found]
        return found

    def on_api_crash(self) -> None:
        """Its connection is gone."""
        if not self.outcome:
            self.over("lost")

    def fail(self, error: Exception) -> None:
        """Only as it was to: nobody pays for another's fault."""
        self.check_failure(error.code or "internal" if isinstance(error, RequestError) else "?")

    def check_failure(self, code: str) -> None:
        if code == "queue_timeout" and self.asked.max_queue_s is not None:
            self.over("waited")
            return
        if code == "internal" and self.api.num_swaps - self._num_swaps >= MAX_FAULTS:
            self.over("failed")  # frames changed places at one token, and again in each replay
            return
        expected = self.asked.failures | self.asked.late_failures
        assert code in expected, f"{code} instead of {expected}"
        self.over("failed")


class RunClient(Client):
    """Reads the run itself."""

    def __init__(self, clock: Clock, rng: Random, api: ApiProcess, asked: Asked, run: Run) -> None:
        super().__init__(clock, rng, api, asked)
        self.run = run
        if asked.is_impatient:
            api.later(0.02 * rng.random(), self.leave)
        run.read_by(self.read)

    def leave(self) -> None:
        if not self.outcome:
            self.run.end()
            self.over("gone")

    def read(self) -> None:
        for index, delta in self.run.take(self.clock.now_s):
            self.on_delta(index, delta)
        if not self.run.generation.is_running:
            error = self.run.generation.error
            self.run.end()
            if error is not None:
                self.fail(error)
            else:
                self.on_end()
                self.complete()

    def on_delta(self, index: int, delta: Delta) -> None:
        raise NotImplementedError

    def on_end(self) -> None:
        self.num_tokens = self.run.usage().completion_tokens


class PlainClient(RunClient):
    def __init__(self, clock: Clock, rng: Random, api: ApiProcess, asked: Asked, run: Run) -> None:
        self._reply = PlainReply(run.plan, run.head, run.choices, run.prompts)
        super().__init__(clock, rng, api, asked, run)

    def on_delta(self, index: int, delta: Delta) -> None:
        self._reply.add(index, delta)

    def on_end(self) -> None:
        usage = self.run.usage()
        body = load(b"".join(self._reply.parts(usage)))
        self.num_tokens = body["usage"]["completion_tokens"]
        for index, choice in enumerate(body["choices"]):
            found = choice["logprobs"]
            self.add(index, choice["text"], [] if found is None else found["token_logprobs"])
            self.reasons[index] = (choice["finish_reason"], choice["stop_reason"])
            if self.asked.plan.request.prompt_logprobs is not None:
                self._check_prompt(choice["prompt_logprobs"])

    def _check_prompt(self, entries: list[dict[str, dict[str, float]] | None]) -> None:
        prompt = tuple(self.asked.plan.prompts[0])
        assert entries[0] is None
        assert len(entries) == len(prompt)
        found = [
            entry[str(token_id)]["logprob"]
            for entry, token_id in zip(entries[1:], prompt[1:], strict=True)
            if entry is not None
        ]
        assert found == list(prompt_logprobs(prompt))


class PiecesClient(RunClient):
    """As a stream without ids is read: while the client does not read, what comes waits; if it is much or
    takes long, the sequences are parked."""

    def __init__(self, clock: Clock, rng: Random, api: ApiProcess, asked: Asked, run: Run) -> None:
        self._is_stalled = False
        self._parking = Parking(run.generation, 150, PARK_ABOVE_BYTES)
        super().__init__(clock, rng, api, asked, run)

    def read(self) -> None:
        if self.outcome:
            return
        if self._is_stalled:
            self._parking.on_waiting()
        elif self.run.generation.is_running and self.rng.random() < 0.3:
            self._stall()
        else:
            super().read()

    def _stall(self) -> None:
        """stall_reader, and resume_reader some time later."""
        self._is_stalled = True
        stalled_s = self.rng.choice((0.01, 0.01, 0.1, 1.0)) * self.rng.random()
        self.api.later(0.5 * stalled_s, self._park)
        self.api.later(stalled_s, self._go_on)

    def _park(self) -> None:
        if not self.outcome:
            self._parking.on_stalled()

    def _go_on(self) -> None:
        self._is_stalled = False
        if not self.outcome:
            super().read()
            self._parking.on_taken(is_waiting=False)

    def over(self, outcome: str) -> None:
        super().over(outcome)
        self._parking.close()

    def on_delta(self, index: int, delta: Delta) -> None:
        found = [] if delta.logprobs is None else delta.logprobs["token_logprobs"]
        self.add(index, delta.text, found)
        self.reasons[index] = (delta.finish_reason, delta.stop_reason)
