"""What a client is told when one sequence of its request ended by a fault."""

from __future__ import annotations

import random
from typing import Literal, NamedTuple

from server.errors import RequestError
from server.sequence import FailureKind

GrammarField = Literal["structured_outputs", "response_format"]


_SOON_S = 2  # on average, in whole seconds: those who failed in one step must not come back in one


class _Answer(NamedTuple):
    status: int
    code: str | None
    message: str
    param: str | None = None
    retry_after_s: int | None = None  # about


# `{field}`, also as param: the one by which the request asked for a grammar
_ANSWERS: dict[FailureKind, _Answer] = {
    "grammar_invalid": _Answer(
        400,
        "grammar_invalid",
        "{field} holds a grammar that does not compile.",
        "{field}",
    ),
    "grammar_unsupported": _Answer(
        400,
        "grammar_unsupported",
        "{field} uses a feature that this server does not support.",
        "{field}",
    ),
    "grammar_too_complex": _Answer(
        400,
        "grammar_too_complex",
        "{field} is too complex for this server.",
        "{field}",
    ),
    "grammar_too_slow": _Answer(
        400,
        "grammar_too_slow",
        "{field} took too long to compile or to follow.",
        "{field}",
    ),
    "no_token_allowed": _Answer(
        400,
        "no_token_allowed",
        "allowed_token_ids, bad_words and structured_outputs or response_format together leave no "
        "token to go on with.",
    ),
    "not_finite": _Answer(
        500,
        "not_finite",
        "The model gave no finite probabilities for this request; this is a fault of ours.",
    ),
    "engine_crash": _Answer(
        500,
        "engine_crash",
        "The request repeatedly stopped the engine and was given up; this is a fault of ours.",
    ),
    "expired": _Answer(
        503,
        "queue_timeout",
        "The request waited for its turn as long as it may, and was not begun.",
        retry_after_s=_SOON_S,
    ),
    "queue_full": _Answer(
        503,
        "server_overloaded",
        "The server has more work waiting than it takes.",
        retry_after_s=_SOON_S,
    ),
    "internal": _Answer(
        500, None, "The server failed to compute this request; this is a fault of ours."
    ),
}


def failure_error(
    kind: FailureKind, grammar_field: GrammarField = "structured_outputs"
) -> RequestError:
    """An error of the status that fits: 400 where another request would do better, 500 for our own."""
    answer = _ANSWERS[kind]
    return RequestError(
        answer.message.format(field=grammar_field),
        param=answer.param and answer.param.format(field=grammar_field),
        code=answer.code,
        status=answer.status,
        retry_after_s=answer.retry_after_s and random.randint(1, 2 * answer.retry_after_s - 1),
    )
