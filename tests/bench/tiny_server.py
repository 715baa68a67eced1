"""A small real HTTP server that completes by the clock and writes down when it did what."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Seen:
    """One completion as the server saw it."""

    body: dict[str, Any]
    headers: str
    at_s: float  # when its request had been read
    wrote_s: list[float] = field(default_factory=list)  # when each event with text was written


Answer = Callable[["TinyServer", Seen, asyncio.StreamWriter], Any]


class TinyServer:
    """Serves in a thread of its own until the block ends. `answer` may replace what it does."""

    def __init__(
        self,
        answer: Answer | None = None,
        first_s: float = 0.0,
        gap_s: float = 0.0,
        models: tuple[str, ...] = ("tiny",),
    ) -> None:
        self.answer = answer or stream
        self.first_s = first_s
        self.gap_s = gap_s
        self.models = models
        self.max_model_len: int | None = None
        self.seen: list[Seen] = []
        self.num_connections = 0
        self.url = ""

    def measured(self, warm_up: int = 2) -> list[Seen]:
        """Without the probe and the warm-up."""
        return self.seen[1 + warm_up :]

    def __enter__(self) -> TinyServer:
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,))
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._until_ended(started))
        self._loop.close()

    async def _until_ended(self, started: threading.Event) -> None:
        self._end = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        await self._end.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        task = asyncio.ensure_future(self._talk(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                if head.startswith("GET /v1/models"):
                    cards = [
                        {"id": name, "max_model_len": self.max_model_len} for name in self.models
                    ]
                    reply(writer, 200, {"data": cards})
                    continue
                length = int(head.lower().split("content-length:")[1].split("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                self.seen.append(Seen(body, head, time.perf_counter()))
                await self.answer(self, self.seen[-1], writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def reply(writer: asyncio.StreamWriter, status: int, document: Any) -> None:
    body = json.dumps(document).encode()
    writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


def begin(writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )


def send(writer: asyncio.StreamWriter, text: bytes) -> None:
    """One chunk of the body; an empty one ends it."""
    writer.write(b"%x\r\n%s\r\n" % (len(text), text))


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def token(text: str = " a", finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish}]})


def usage(body: dict[str, Any]) -> bytes:
    prompt = body.get("prompt", "")
    num_prompt = 2 * len(prompt.split()) if isinstance(prompt, str) else len(prompt)
    counts = {"prompt_tokens": num_prompt, "completion_tokens": body["max_tokens"]}
    return event({"choices": [], "usage": counts})


async def stream(server: TinyServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """max_tokens tokens, the first after first_s, each further one after gap_s."""
    begin(writer)
    for index in range(seen.body["max_tokens"]):
        await asyncio.sleep(server.gap_s if index else server.first_s)
        is_last = index == seen.body["max_tokens"] - 1
        seen.wrote_s.append(time.perf_counter())
        send(writer, token(finish="length" if is_last else None))
        await writer.drain()
    if "stream_options" in seen.body:
        send(writer, usage(seen.body))
    send(writer, b"data: [DONE]\n\n")
    send(writer, b"")
