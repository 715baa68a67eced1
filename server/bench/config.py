"""What `continuo bench` was told: a frozen dataclass, validated when built. Standard library only."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from server.bench.lengths import Lengths, parse_lengths
from server.errors import ConfigError

Endpoint = Literal["completions", "chat"]
Prompts = Literal["text", "token-ids"]
Figure = Literal["ttft", "itl", "tpot", "e2e"]

DEFAULT_TOKENS = "128"
MAX_IN_FLIGHT = 65_536  # ports of one client address


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ConfigError(sentence)


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """Defaults measure one stream at a time; `--rate` or `--concurrency` make it a load."""

    url: str = "http://127.0.0.1:8000"
    model: str = ""  # empty: the first that the server lists
    api_key: str = ""
    endpoint: Endpoint = "completions"
    timeout: float = 600.0  # seconds, of one request

    rate: str = ""  # open loop, requests/s; several: a sweep
    concurrency: str = ""  # closed loop; several: a sweep
    num_requests: int | None = None  # of each load
    duration: float | None = None  # seconds of each load in which requests are begun
    warm_up: int = 2  # requests before the first load
    seed: int = 0

    prompts: Prompts = "text"
    prompt_tokens: str = ""  # empty: 128, or the dataset's own
    output_tokens: str = ""  # the same
    shared_prefix_tokens: int = 0
    max_token_id: int = 1000
    dataset: str = ""

    ignore_eos: bool = True
    needs_done: bool = True  # a stream without data: [DONE] at its end was cut short
    temperature: float = 0.0
    extra: str = ""

    goodput: str = ""
    json: str = ""
    png: str = ""

    def __post_init__(self) -> None:
        _require(self.endpoint in get_args(Endpoint), "--endpoint is completions or chat.")
        _require(self.prompts in get_args(Prompts), "--prompts is text or token-ids.")
        _require(0 < self.timeout <= 86_400, "--timeout must be above 0, at most 86400 s.")
        _require(
            not (self.rate and self.concurrency), "--rate and --concurrency exclude each other."
        )
        _require(
            self.num_requests is None or self.num_requests >= 1, "--num-requests must be above 0."
        )
        _require(
            self.duration is None or 0 < self.duration <= 86_400,
            "--duration must be above 0, at most 86400 s.",
        )
        _require(self.warm_up >= 0, "--warm-up must be 0 or more.")
        _require(self.shared_prefix_tokens >= 0, "--shared-prefix-tokens must be 0 or more.")
        _require(self.max_token_id > 100, "--max-token-id must be above 100.")
        _require(
            self.endpoint == "completions" or self.prompts == "text",
            "--prompts token-ids needs --endpoint completions: a chat takes text.",
        )
        _require(
            not self.dataset or self.prompts == "text",
            "--dataset holds text, so it excludes --prompts token-ids.",
        )
        _require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            "--temperature must be 0 or more.",
        )
        self.loads()
        _require(
            not (self.dataset and self.prompt_tokens),
            "--prompt-tokens is for made-up prompts: those of --dataset have lengths of their own.",
        )
        self.prompt_lengths()
        self.output_lengths()
        self.targets_ms()
        self.extra_fields()

    def loads(self) -> list[Load]:
        """The loads to run, in the order given."""
        if self.rate:
            return [Load("rate", value) for value in _numbers("--rate", self.rate)]
        values = _numbers("--concurrency", self.concurrency or "1")
        _require(
            all(value == int(value) and value <= MAX_IN_FLIGHT for value in values),
            f"--concurrency takes whole numbers up to {MAX_IN_FLIGHT}.",
        )
        return [Load("concurrency", value) for value in values]

    def requests_of(self, load: Load) -> int | None:
        """How many to send at most; None where only the duration ends a load."""
        if self.num_requests is None and self.duration is None:
            return max(100, 4 * int(load.value)) if load.kind == "concurrency" else 100
        return self.num_requests

    def prompt_lengths(self) -> Lengths:
        return parse_lengths("--prompt-tokens", self.prompt_tokens or DEFAULT_TOKENS)

    def output_lengths(self) -> Lengths:
        return parse_lengths("--output-tokens", self.output_tokens or DEFAULT_TOKENS)

    def targets_ms(self) -> dict[Figure, float]:
        """`ttft:200,itl:50` as a dictionary; empty without --goodput."""
        targets: dict[Figure, float] = {}
        for part in filter(None, self.goodput.split(",")):
            name, _, value = part.partition(":")
            for target in get_args(Figure):
                if name.strip() == target:
                    targets[target] = _number("--goodput", value)
                    break
            else:
                raise ConfigError(
                    f"--goodput {part!r} is not a target: ttft, itl, tpot or e2e, "
                    "a colon, milliseconds."
                )
        return targets

    def extra_fields(self) -> dict[str, Any]:
        """Fields that go into every request's body as they are."""
        if not self.extra:
            return {}
        try:
            fields = json.loads(self.extra)
        except ValueError as error:
            raise ConfigError("--extra is not JSON.") from error
        _require(isinstance(fields, dict), "--extra is not a JSON object.")
        extra: dict[str, Any] = fields
        taken = sorted({"stream", "prompt", "messages", "n", "best_of"} & extra.keys())
        _require(not taken, f"--extra may not set {', '.join(taken)}.")
        return extra


@dataclass(frozen=True, slots=True)
class Load:
    """One point of a sweep."""

    kind: Literal["rate", "concurrency"]
    value: float  # requests/s, or requests in flight

    def __str__(self) -> str:
        unit = "requests/s" if self.kind == "rate" else "in flight"
        return f"{self.value:g} {unit}"


def _numbers(flag: str, text: str) -> list[float]:
    return [_number(flag, part) for part in text.split(",")]


def _number(flag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    _require(math.isfinite(value) and value > 0, f"{flag}: {text!r} is not a number above 0.")
    return value
