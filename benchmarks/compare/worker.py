"""An engine in a process of its own: python -m benchmarks.compare.worker KIND MODEL FORM THREADS MAX_STREAMS

Lines of JSON in, lines of JSON out. What libraries print goes to stderr. The process is stopped (SIGSTOP)
while others are measured, so it does nothing in between.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import IO, Any

Generate = Callable[[list[list[int]], int], list[list[int]]]


def _load(kind: str, model: str, form: str, threads: int, max_streams: int) -> Generate:
    match kind:
        case "continuo":
            from benchmarks.compare.peers.continuo import load
        case "transformers":
            from benchmarks.compare.peers.transformers import load
        case "transformers-continuous":
            from benchmarks.compare.peers.transformers import load_continuous as load
        case "ctranslate2":
            from benchmarks.compare.peers.ctranslate2 import load
        case "llama.cpp":
            from benchmarks.compare.peers.llama_cpp import load
        case _:
            raise ValueError(f"no such engine: {kind}")
    return load(model, form, threads, max_streams)


def measure(generate: Generate, job: dict[str, Any]) -> dict[str, Any]:
    """Seconds to the first token of all streams, and to the last of them, as two runs."""
    prompts, num_tokens = job["prompts"], job["num_tokens"]
    started = time.perf_counter()
    generate(job["first_prompts"], 1)
    first_s = time.perf_counter() - started
    started = time.perf_counter()
    outputs = generate(prompts, num_tokens)
    seconds = time.perf_counter() - started
    return {"first_s": first_s, "seconds": seconds, "outputs": outputs}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    kind, model, form, threads, max_streams = sys.argv[1:]
    try:
        if kind == "read":
            from benchmarks.compare.peers.read import load

            read = load(int(model), int(threads))
        else:
            generate = _load(kind, model, form, int(threads), int(max_streams))
    except Exception as error:  # whatever a peer's own code raises is the reason in the table
        replies.write(json.dumps({"missing": _reason(error)}) + "\n")
        return

    def answer(job: dict[str, Any]) -> dict[str, Any]:
        return {"read_s": read()} if kind == "read" else measure(generate, job)

    replies.write('{"ready": true}\n')
    serve(answer, sys.stdin, replies)


def serve(
    answer: Callable[[dict[str, Any]], dict[str, Any]], jobs: Iterable[str], replies: IO[str]
) -> None:
    """A line for each line. What an engine raises is an answer, too."""
    for line in jobs:
        try:
            reply = answer(json.loads(line))
        except Exception as error:
            reply = {"failed": _reason(error)}
        replies.write(json.dumps(reply) + "\n")


def _reason(error: Exception) -> str:
    """One line, and not a long one."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return words if len(words) <= 160 else f"{words[:157]}..."


if __name__ == "__main__":
    main()
