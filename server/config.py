"""The configuration: frozen dataclasses, validated once when built, complete before any room exists.

Flags are made from these fields (`cli.py`). Nothing here reads the environment. "auto" and None are
resolved by functions that return a new config and say what they chose.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from server.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
KVCacheDtype = Literal["auto", "fp8"]
PromptLookupMode = Literal["auto", "off"]
Quantization = Literal["none", "int8"]
CPU_DTYPES: tuple[Dtype, ...] = ("bfloat16", "float32")
LogFormat = Literal["text", "json"]

MAX_API_WORKERS = 16  # a stream's id names its worker by one hex digit
_BLOCK_SIZES = (8, 16, 32, 64, 128)
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+|\[?[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*\]?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@,*]+")


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ConfigError(sentence)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What one engine process needs to know. None and "auto" mean: chosen at start, and said."""

    model: str = ""  # a model directory; empty: the embedded model
    model_manifest: str = ""  # a file of SHA-256 digests; empty: its files are taken as they are
    device: Device = "auto"
    dtype: Dtype = "auto"
    quantization: Quantization = "none"  # of the matrices; dtype stays that of all else
    max_model_len: int | None = None  # tokens; None: the checkpoint's context length
    max_num_seqs: int | None = None  # sequences running at once; None: by the device
    max_num_batched_tokens: int | None = None  # token rows in one step; None: by the device
    block_size: int = 16  # tokens in one KV block
    kv_cache_dtype: KVCacheDtype = "auto"  # auto: that of the model
    kv_cache_gib: float | None = None  # None: what memory allows
    gpu_memory_utilization: float = 0.9  # of the whole GPU's memory, for everything of ours
    prompt_lookup: PromptLookupMode = "auto"  # drafts from a sequence's own ids: on a CPU

    def __post_init__(self) -> None:
        _require(
            self.device in get_args(Device), f"--device {self.device!r} is not auto, cpu or cuda."
        )
        _require(
            self.dtype in get_args(Dtype),
            f"--dtype {self.dtype!r} is not auto, bfloat16, float16 or float32.",
        )
        _require(
            self.quantization in get_args(Quantization),
            f"--quantization {self.quantization!r} is not none or int8.",
        )
        _require(
            self.max_model_len is None or self.max_model_len >= 2,
            "--max-model-len must be at least 2 tokens.",
        )
        _require(
            self.kv_cache_dtype in get_args(KVCacheDtype),
            f"--kv-cache-dtype {self.kv_cache_dtype!r} is not auto or fp8.",
        )
        _require(
            self.max_num_seqs is None or 1 <= self.max_num_seqs <= 4096,
            "--max-num-seqs must be between 1 and 4096.",
        )
        _require(
            self.max_num_batched_tokens is None or self.max_num_batched_tokens >= 1,
            "--max-num-batched-tokens must be at least 1.",
        )
        _require(
            0.05 <= self.gpu_memory_utilization <= 0.98,
            "--gpu-memory-utilization must be between 0.05 and 0.98.",
        )
        _require(
            self.block_size in _BLOCK_SIZES,
            f"--block-size must be one of {', '.join(map(str, _BLOCK_SIZES))}.",
        )
        _require(
            self.prompt_lookup in get_args(PromptLookupMode),
            f"--prompt-lookup {self.prompt_lookup!r} is not auto or off.",
        )
        _require(
            self.kv_cache_gib is None or self.kv_cache_gib > 0, "--kv-cache-gib must be above 0."
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine's sizes come to once the model and the device are known."""

    max_model_len: int  # tokens
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int

    def __post_init__(self) -> None:
        _require(
            self.max_num_batched_tokens >= self.max_num_seqs,
            "--max-num-batched-tokens must be at least --max-num-seqs, so that every running "
            "sequence gets its token in each step.",
        )

    @property
    def blocks_per_seq(self) -> int:
        """KV blocks of one sequence of full length."""
        return -(-self.max_model_len // self.block_size)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Everything `continuo serve` was told."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    served_model_name: str = ""  # empty: the model directory's name, or "continuo-stories"
    host: str = "127.0.0.1"
    port: int = 8000
    log_format: LogFormat = "text"
    log_requests: bool = True
    api_key_file: str = ""  # empty: no key is needed
    ssl_certfile: str = ""  # both or neither; empty: plain HTTP
    ssl_keyfile: str = ""
    allowed_hosts: str = ""  # comma-separated; empty: this machine's names on loopback, else any
    allowed_origins: str = ""  # comma-separated; empty: no CORS headers
    drain_seconds: float = 30.0  # after SIGTERM, for running requests to end
    stall_seconds: float = 30.0  # without progress: the engine is killed and replaced
    # Until a request's first step; one that would wait longer is refused. After an overload the queue needs
    # so long to empty; with less than an engine or a grammar's process needs to start, these would be seen.
    max_queue_seconds: float = 10.0
    resume_memory_mib: int = 64  # for streams and replies that can be read again
    api_workers: int = 1  # processes of text and HTTP that share the port

    def __post_init__(self) -> None:
        _require(0 <= self.port <= 65535, "--port must be between 0 and 65535.")
        _require(self.log_format in ("text", "json"), "--log-format is text or json.")
        _require(
            bool(self.ssl_certfile) == bool(self.ssl_keyfile),
            "--ssl-certfile and --ssl-keyfile are given together or not at all.",
        )
        _require(0 <= self.drain_seconds <= 3600, "--drain-seconds must be between 0 and 3600.")
        _require(1 <= self.stall_seconds <= 3600, "--stall-seconds must be between 1 and 3600.")
        _require(
            0 < self.max_queue_seconds <= 3600, "--max-queue-seconds must be above 0, at most 3600."
        )
        _require(
            1 <= self.resume_memory_mib <= 65536, "--resume-memory-mib must be between 1 and 65536."
        )
        _require(
            1 <= self.api_workers <= MAX_API_WORKERS,
            f"--api-workers must be between 1 and {MAX_API_WORKERS}.",
        )
        for name in self.hosts:
            _require(
                name == "*" or _HOST_NAME.fullmatch(name) is not None,
                f"--allowed-hosts: {name!r} is not * or a host's name or address, like "
                "llm.example.org (no port, no scheme).",
            )
        for origin in self.origins:
            _require(
                origin == "*" or _ORIGIN.fullmatch(origin) is not None,
                f"--allowed-origins: {origin!r} is not * or an origin like https://example.org:8443 "
                "(no path, no slash at its end).",
            )

    @property
    def hosts(self) -> tuple[str, ...]:
        """Whom a request's Host header may name."""
        return tuple(part.strip() for part in self.allowed_hosts.split(",") if part.strip())

    @property
    def origins(self) -> tuple[str, ...]:
        """Whose web pages may use the API from a browser."""
        return tuple(part.strip() for part in self.allowed_origins.split(",") if part.strip())


@dataclass(frozen=True, slots=True)
class GenerateConfig:
    """How `continuo generate` draws its one completion."""

    max_tokens: int = 128
    temperature: float = 0.8
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, "--max-tokens must be at least 1.")
        _require(0 <= self.temperature <= 100, "--temperature must be between 0 and 100.")
        _require(0 < self.top_p <= 1, "--top-p must be above 0 and at most 1.")
        _require(self.top_k >= 0, "--top-k must be 0 (off) or more.")
        _require(
            self.seed is None or -(2**63) <= self.seed < 2**63, "--seed must be a 64-bit integer."
        )
