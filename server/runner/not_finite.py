"""What is said of a checkpoint that holds NaNs or infinities: it is served, and the operator is told."""

from __future__ import annotations

import logging

from server.model.checkpoint import Checkpoint

_log = logging.getLogger(__name__)

_MAX_SHOWN = 3


def warn_of_not_finite(checkpoint: Checkpoint) -> int:
    """How many tensors hold one. To be asked once all weights have been read."""
    found = checkpoint.not_finite()
    if found:
        shown = ", ".join(repr(name[:80]) for name in found[:_MAX_SHOWN])
        more = f" and {len(found) - _MAX_SHOWN} more" if len(found) > _MAX_SHOWN else ""
        _log.warning(
            "the weights hold NaNs or infinities, in %s%s: rows that they reach will fail",
            shown,
            more,
        )
    return len(found)
