"""The exceptions that carry a sentence for a person. Everything else is a fault of ours.

ContinuoError
├── ConfigError          an operator's mistake: a flag, a missing file, a busy port, too little memory
│   ├── ModelError       the model directory: config.json, weights or tokenizer files
│   └── TrainingError    `continuo train` cannot go on (server/training/errors.py)
├── RequestError         a client's mistake; becomes a 4xx
│   └── ContextLengthError   prompt + max_tokens does not fit
├── EngineGoneError      there is no engine, and none comes; becomes a 503 or an error event
└── ProtocolError        an engine's frame that cannot be right; reconnect, and no client sees it
"""

from __future__ import annotations


class ContinuoError(Exception):
    """Base of all of them; `str()` is one sentence that is safe to print."""


class ConfigError(ContinuoError):
    """The server cannot start as configured. The command exits with status 2."""


class ModelError(ConfigError):
    """A model directory cannot be served; the sentence names the file and, if any, the tensor."""


class RequestError(ContinuoError):
    """A request that cannot be served as it was sent. `message` is text of ours, never `str(exc)`."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        retry_after_s: float | None = None,
    ) -> None:
        """`retry_after_s`: the same request may do better then; for 429 and 503."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status
        self.retry_after_s = retry_after_s


class ContextLengthError(RequestError):
    """The prompt and its completion do not fit in `max_model_len`; states all three numbers."""

    def __init__(
        self, max_model_len: int, prompt_tokens: int, max_tokens: int, *, is_minimum: bool = False
    ) -> None:
        """`is_minimum`: the prompt has at least so many tokens."""
        number = f"at least {prompt_tokens}" if is_minimum else prompt_tokens
        super().__init__(
            f"This model's maximum context length is {max_model_len} tokens, but {number} "
            f"prompt tokens and {max_tokens} completion tokens were requested.",
            param="prompt" if prompt_tokens >= max_model_len else "max_tokens",
            code="context_length_exceeded",
        )


class EngineGoneError(ContinuoError):
    """There is no engine that could finish a sequence, or none that gives the same bytes."""


class ProtocolError(ContinuoError):
    """The engine left out a token, or drew one again differently: all is to be computed again."""
