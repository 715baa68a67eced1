"""The yardstick: FastAPI's StreamingResponse with one Pydantic object per token, as most servers write it.

It reads the same engine frames; each stream has an asyncio.Queue, its generator decodes a token, makes a
chunk with its choice and yields `model_dump_json`. No stop strings, logprobs, metrics, pings or aborts.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from benchmarks.serving.api_load import MODEL_NAME, listener_of
from server.ipc.client import EngineLink
from server.ipc.frames import StepOutput, Submit, ToApi
from server.sequence import SamplingParams, SequenceOutput, SequenceRequest
from server.tokenizer import StreamDecoder, Tokenizer, load_tokenizer


class Body(BaseModel):
    prompt: str
    max_tokens: int
    ignore_eos: bool
    stream: bool


class Choice(BaseModel):
    index: int
    text: str
    logprobs: None = None
    finish_reason: str | None
    stop_reason: str | None = None


class Chunk(BaseModel):
    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    system_fingerprint: str = "fp_load"
    seed: int


class Streams:
    """A queue for each open sequence."""

    def __init__(self, path: str) -> None:
        self.link = EngineLink(path, self._on_frame, lambda: None)
        self._queues: dict[int, asyncio.Queue[SequenceOutput]] = {}

    def submit(self, prompt_ids: list[int], max_tokens: int) -> asyncio.Queue[SequenceOutput]:
        seq_id = len(self._queues)
        queue = self._queues[seq_id] = asyncio.Queue()
        params = SamplingParams(max_tokens=max_tokens, seed=seq_id)
        self.link.send(Submit([SequenceRequest(seq_id, prompt_ids, 0, params)]))
        return queue

    def _on_frame(self, frame: ToApi) -> None:
        if isinstance(frame, StepOutput):
            for output in frame.outputs:
                self._queues[output.seq_id].put_nowait(output)


async def events(queue: asyncio.Queue[SequenceOutput], tokenizer: Tokenizer) -> AsyncIterator[str]:
    decoder = StreamDecoder(tokenizer)
    chunk_id, created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
    finish = None
    while finish is None:
        output = await queue.get()
        finish = output.finish_reason
        choice = Choice(index=0, text=decoder.feed(output.token_ids[0]), finish_reason=finish)
        chunk = Chunk(id=chunk_id, created=created, model=MODEL_NAME, choices=[choice], seed=0)
        yield f"data: {chunk.model_dump_json()}\n\n"
    yield "data: [DONE]\n\n"


def make_app(path: str, tokenizer: Tokenizer) -> FastAPI:
    streams = Streams(path)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        connection = asyncio.create_task(streams.link.run())
        yield
        connection.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/completions")
    async def completions(body: Body) -> StreamingResponse:
        queue = streams.submit(tokenizer.encode(body.prompt), body.max_tokens)
        return StreamingResponse(events(queue, tokenizer), media_type="text/event-stream")

    return app


if __name__ == "__main__":
    path, descriptor, model = sys.argv[1:]
    config = uvicorn.Config(
        make_app(path, load_tokenizer(model)),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
    uvicorn.Server(config).run(sockets=[listener_of(descriptor)])
