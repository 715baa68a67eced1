"""What is compared: each engine's process without HTTP, and each server's command line."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare.environment import LLAMA_BIN, Peers
from benchmarks.compare.models import EMBEDDED_NAME
from kernels.cpu.kinds import BF16_KINDS, Kind

# Without instructions for it torch is many times slower in bf16 than in fp32, which nobody would choose.
HAS_BF16 = BF16_KINDS[0] != Kind.BF16
NO_BF16 = "this CPU has no bf16 instructions: fp32 is many times faster"
THREADS = len(os.sched_getaffinity(0))
MAX_IN_FLIGHT = 16  # of the loads through HTTP


@dataclass(frozen=True)
class Engine:
    """`form`: what its loader calls the numbers; `weights`: how many bytes a weight has (models.py)."""

    name: str
    peer: str  # whose installation it needs; "continuo" needs none
    kind: str  # of worker.py
    model_form: str  # of models.py
    form: str
    weights: str
    is_wide: bool = False  # measured at 32 and 64 streams, too

    @property
    def is_hopeless(self) -> bool:
        return self.peer == "transformers" and self.form == "bfloat16" and not HAS_BF16


ENGINES = (
    Engine("Continuo fp32", "continuo", "continuo", "hf", "float32", "float32"),
    Engine("transformers fp32", "transformers", "transformers", "hf", "float32", "float32"),
    Engine("CTranslate2 fp32", "ctranslate2", "ctranslate2", "ctranslate2", "float32", "float32"),
    Engine("llama.cpp fp32", "llama.cpp", "llama.cpp", "gguf-f32", "f32", "float32"),
    Engine("Continuo bf16", "continuo", "continuo", "hf", "bfloat16", "bfloat16", True),
    Engine("transformers bf16", "transformers", "transformers", "hf", "bfloat16", "bfloat16"),
    Engine(
        "transformers continuous bf16",
        "transformers", "transformers-continuous", "hf", "bfloat16", "bfloat16", True,
    ),
    Engine(
        "transformers continuous fp32",
        "transformers", "transformers-continuous", "hf", "float32", "float32", not HAS_BF16,
    ),
    Engine("llama.cpp bf16", "llama.cpp", "llama.cpp", "gguf-bf16", "bf16", "bf16"),
    Engine("Continuo int8", "continuo", "continuo", "hf", "int8", "int8", True),
    Engine("CTranslate2 int8", "ctranslate2", "ctranslate2", "ctranslate2", "int8", "int8", True),
    Engine("llama.cpp Q8_0", "llama.cpp", "llama.cpp", "gguf-q8_0", "q8_0", "q8_0", True),
)  # fmt: skip
REFERENCE = "transformers fp32"  # whose ids the others' are compared with
FP32 = tuple(engine.name for engine in ENGINES if engine.weights == "float32")


@dataclass(frozen=True)
class Server:
    """A server and what `continuo bench` must be told to be understood by it."""

    name: str  # equal to the engine's where there is one
    peer: str
    model_form: str
    form: str
    ready_path: str
    bench_flags: tuple[str, ...] = ("--prompts", "token-ids")
    needs_model_name: bool = False

    def command(self, model: Path, port: int, peers: Peers) -> list[str]:
        place = ["--host", "127.0.0.1", "--port", str(port)]
        if self.peer == "continuo":
            form = ["--quantization"] if self.form == "int8" else ["--dtype"]
            command = [sys.executable, "-m", "server", "serve", "--model", str(model)]
            return [*command, *place, *form, self.form, "--prompt-lookup", "off"]
        if self.peer == "llama.cpp":
            return [
                str(LLAMA_BIN / "llama-server"), "-m", str(model), *place,
                "-t", str(THREADS), "-tb", str(THREADS), "-np", str(MAX_IN_FLIGHT),
                "-c", str(512 * MAX_IN_FLIGHT), "--cache-ram", "0",
            ]  # fmt: skip
        return [
            str(peers.python), "-c", "from transformers.cli.transformers import main; main()",
            "serve", str(model), "--continuous-batching", "--device", "cpu", "--dtype", self.form,
            "--cb-num-blocks", str(2 * MAX_IN_FLIGHT + 8), "--cb-max-batch-tokens", "256", *place,
        ]  # fmt: skip


SERVERS = (
    Server("Continuo bf16", "continuo", "hf", "bfloat16", "/ready"),
    Server("llama.cpp bf16", "llama.cpp", "gguf-bf16", "bf16", "/health"),
    # It takes text only, refuses ignore_eos (the checkpoint names no end token), and sends no [DONE].
    Server(
        f"transformers continuous {'bf16' if HAS_BF16 else 'fp32'}",
        "transformers", "hf", "bfloat16" if HAS_BF16 else "float32", "/health",
        ("--prompts", "text", "--no-ignore-eos", "--no-needs-done"), True,
    ),
    Server("Continuo int8", "continuo", "hf", "int8", "/ready"),
    Server("llama.cpp Q8_0", "llama.cpp", "gguf-q8_0", "q8_0", "/health"),
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is measured of one model. Prompts are 16 tokens: a step's time is what is compared."""

    model: str
    num_tokens: dict[int, int]  # streams: generated tokens of each
    http_tokens: int
    in_flight: tuple[int, ...]  # loads through HTTP; none: no HTTP
    repeats: int
    forms: tuple[str, ...] = ("float32", "f32", "bfloat16", "bf16", "int8", "q8_0")

    @property
    def engines(self) -> tuple[Engine, ...]:
        return tuple(engine for engine in ENGINES if engine.form in self.forms)

    @property
    def wide_repeats(self) -> int:
        """At 32 and 64 streams, which take long and vary little."""
        return min(self.repeats, 2)


PROMPT_TOKENS = 16
_LOADS = (1, 4, 8, 16)


def plan_of(model: str, repeats: int, *, is_quick: bool, has_large_http: bool) -> Plan:
    if is_quick:
        return Plan(model, {1: 8, 8: 8}, 8, (1, 8) if model != "774M" else (), min(repeats, 2))
    if model == EMBEDDED_NAME:
        return Plan(model, {1: 256, 8: 128, 32: 64, 64: 64}, 256, _LOADS, repeats)
    if model == "124M":
        return Plan(model, {1: 64, 8: 64, 32: 32, 64: 32}, 64, _LOADS, repeats)
    # 774M in fp32 is 3 GB for each of four engines that are loaded at once
    forms = ("bfloat16", "bf16", "int8", "q8_0")
    in_flight = (1, 8) if has_large_http else ()
    return Plan(model, {1: 24, 8: 16}, 16, in_flight, min(repeats, 3), forms)
