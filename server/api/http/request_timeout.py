"""x-request-timeout: how long a client lets its request wait for its turn."""

from __future__ import annotations

import re
from collections.abc import Sequence

from server.errors import RequestError

HEADER = "x-request-timeout"
MAX_TIMEOUT_S = 3600
_SECONDS = re.compile(r"[0-9]{1,4}(\.[0-9]{1,9})?")


def request_timeout_s(values: Sequence[str]) -> float | None:
    """What the header says, `values` being those of all its lines; None without one. Raises RequestError."""
    if not values:
        return None
    value = values[0].strip(" \t")
    if len(values) == 1 and _SECONDS.fullmatch(value) and 0 < float(value) <= MAX_TIMEOUT_S:
        return float(value)
    raise RequestError(
        f"{HEADER} must be a decimal number of seconds above 0, at most {MAX_TIMEOUT_S}.",
        param=HEADER,
    )
