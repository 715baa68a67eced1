"""The end of a server in good order: new completions are refused, running ones finish."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Drain:
    """Whether it has begun, and who is still served."""

    is_on: bool = False
    num_active: int = 0  # completions requests, and streams that are resumed, with a connection

    def begin(self) -> None:
        self.is_on = True
