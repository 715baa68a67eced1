"""POST /v1/completions: from the body to a submitted run."""

from __future__ import annotations

import asyncio
import time
import uuid

from starlette.requests import Request
from starlette.responses import Response

from server.api.body import read_json_body
from server.api.choice_stream import ChoiceOptions, ChoiceStream
from server.api.engine_client import EngineClient
from server.api.logprobs import TokenNames
from server.api.metrics import Metrics, SequenceTimer
from server.api.parsing import parse_completion
from server.api.planning import Plan, plan
from server.api.protocol import CompletionRequest
from server.api.replies import Head
from server.api.responses import CompletionResponse
from server.api.run import Run
from server.api.stop_strings import StopPattern
from server.errors import EngineGoneError, RequestError
from server.tokenizer import Tokenizer

_OFF_LOOP_BYTES = 1 << 16  # larger bodies are parsed in a thread


class CompletionsRoute:
    """What the route needs, given once."""

    def __init__(
        self, tokenizer: Tokenizer, model_name: str, engine: EngineClient, metrics: Metrics
    ) -> None:
        self._tokenizer = tokenizer
        self._names = TokenNames(tokenizer)
        self._model_name = model_name
        self._engine = engine
        self._metrics = metrics

    async def __call__(self, request: Request) -> Response:
        arrived_at = time.monotonic()
        body = await read_json_body(request)
        parsed = await _parse(body)
        if parsed.model is not None and parsed.model != self._model_name:
            raise unknown_model()
        if not self._engine.is_connected or self._engine.info is None:
            raise EngineGoneError("The engine is not connected.")
        planned = await plan(parsed, self._tokenizer, self._engine.info)
        return CompletionResponse(lambda: self._start(planned, arrived_at), planned)

    async def _start(self, planned: Plan, arrived_at: float) -> Run:
        """Submits. From here on somebody must read `deltas`, or close the generation."""
        info = self._engine.info
        assert info is not None
        generation = await self._engine.submit(planned.prompts, planned.n, planned.params)
        head = Head(
            id=f"cmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=self._model_name,
            system_fingerprint=info.system_fingerprint,
            seed=planned.seed,
        )
        options = _choice_options(planned.request)
        choices = [
            ChoiceStream(self._tokenizer, self._names, options, prompt_ids)
            for prompt_ids in planned.prompts
            for _ in range(planned.n)
        ]
        timers = [SequenceTimer(self._metrics, arrived_at) for _ in choices]
        return Run(planned, head, generation, choices, timers)


def unknown_model() -> RequestError:
    return RequestError(
        "This model is not served here; GET /v1/models lists the one that is.",
        param="model",
        code="model_not_found",
        status=404,
    )


async def _parse(body: bytes) -> CompletionRequest:
    if len(body) <= _OFF_LOOP_BYTES:
        return parse_completion(body)
    return await asyncio.get_running_loop().run_in_executor(None, parse_completion, body)


def _choice_options(request: CompletionRequest) -> ChoiceOptions:
    stops = [request.stop] if isinstance(request.stop, str) else request.stop
    return ChoiceOptions(
        stop=StopPattern(stops) if stops else None,
        include_stop=bool(request.include_stop_str_in_output),
        min_tokens=request.min_tokens or 0,
        has_logprobs=request.logprobs is not None,
        has_echo=bool(request.echo),
    )
