"""Whether the server counts as overloaded, for a balancer's probe. Time is an argument."""

from __future__ import annotations

RED_AFTER_S = 1.0
GREEN_BELOW = 0.8  # of what may wait


class OverloadWatch:
    """Red once something was refused and what waits has not been below 80 % of what may for a second; green
    again below that. Under a steady overload what waits swings around the limit with each admission: to
    ask that it stays above would never turn red."""

    def __init__(self) -> None:
        self.is_red = False
        self._high_since_s: float | None = None
        self._was_over = False

    def on_refusal(self) -> None:
        self._was_over = True

    def update(self, pressure: float, now_s: float) -> bool:
        """`pressure`: 1 is all that may wait."""
        if pressure < GREEN_BELOW:
            self.is_red = self._was_over = False
            self._high_since_s = None
            return False
        if self._high_since_s is None:
            self._high_since_s = now_s
        self._was_over = self._was_over or pressure > 1
        if self._was_over and now_s - self._high_since_s >= RED_AFTER_S:
            self.is_red = True
        return self.is_red
