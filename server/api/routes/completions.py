"""POST /v1/completions: from the body to a submitted run."""

from __future__ import annotations

import time
import uuid

from starlette.requests import Request
from starlette.responses import Response

from server.api.engine_client import EngineClient
from server.api.generation import Generation
from server.api.metrics.metrics import Metrics
from server.api.metrics.sequence_timer import SequenceTimer
from server.api.reply.logprobs import TokenNames
from server.api.reply.replies import Head
from server.api.reply.request_view import RequestView
from server.api.reply.responses import CompletionResponse
from server.api.reply.run import Run
from server.api.request.body import read_json_body
from server.api.request.long_work import off_loop
from server.api.request.parsing import parse_completion
from server.api.request.planning import Plan, plan
from server.api.request.protocol import CompletionRequest
from server.errors import EngineGoneError, RequestError
from server.tokenizer import Tokenizer

_OFF_LOOP_BYTES = 1 << 16  # larger bodies are parsed in a thread
_RESUMABLE = "X-Stream-Resumable"


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
        _refuse_resuming(request)
        body = await read_json_body(request)
        parsed = await _parse(body)
        if parsed.model is not None and parsed.model != self._model_name:
            raise unknown_model()
        if not self._engine.is_connected or self._engine.info is None:
            raise self._engine_gone()
        planned = await plan(parsed, self._tokenizer, self._engine.info)
        return CompletionResponse(lambda: self._start(planned, arrived_at), planned)

    async def _start(self, planned: Plan, arrived_at: float) -> Run:
        """Submits. From here on somebody must read the run, and end it."""
        head = self._head(planned)
        view = RequestView(planned.request, self._tokenizer, self._names)
        prompts = [view.prompt(prompt_ids) for prompt_ids in planned.prompts]
        choices = [view.choice(prompt) for prompt in prompts for _ in range(planned.n)]
        generation = await self._submit(planned)
        timers = [SequenceTimer(self._metrics, arrived_at) for _ in choices]
        return Run(planned, head, generation, choices, timers, prompts)

    async def _submit(self, planned: Plan) -> Generation:
        try:
            generation = await self._engine.submit(planned.requests())
        except EngineGoneError:  # since the request was planned
            raise self._engine_gone() from None
        self._metrics.on_submit(
            planned.prompts,
            n=planned.num_returned,
            num_sequences=planned.n,
            max_tokens=planned.params.max_tokens,
        )
        return generation

    def _engine_gone(self) -> EngineGoneError:
        self._metrics.on_rejection("engine_gone")
        return EngineGoneError("The engine is not connected.")

    def _head(self, planned: Plan) -> Head:
        info = self._engine.info
        assert info is not None
        return Head(
            id=f"cmpl-{planned.request.request_id or uuid.uuid4().hex}",
            created=int(time.time()),
            model=self._model_name,
            system_fingerprint=info.system_fingerprint,
            seed=planned.seed,
        )


def unknown_model() -> RequestError:
    return RequestError(
        "This model is not served here; GET /v1/models lists the one that is.",
        param="model",
        code="model_not_found",
        status=404,
    )


def _refuse_resuming(request: Request) -> None:
    """As stream_options.resumable is: whoever asks for it relies on it."""
    if request.headers.get(_RESUMABLE, "0") != "0":
        raise RequestError(
            f"{_RESUMABLE}: resumable streams are not supported by this server.", param=_RESUMABLE
        )


async def _parse(body: bytes) -> CompletionRequest:
    if len(body) <= _OFF_LOOP_BYTES:
        return parse_completion(body)
    return await off_loop(parse_completion, body)
