"""Clients that repeat their requests for ever, each in a thread, and compare every answer."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

from tests.chaos.reading import ask
from tests.chaos.references import Reference
from tests.waiting import wait_for


class Crowd:
    """One client for each reference. `stop` lets the open requests end."""

    def __init__(self, address: str, references: Sequence[Reference], seed: int = 0) -> None:
        self._address = address
        self.num_answers = [0] * len(references)
        self.failures: list[str] = []
        self._is_over = False
        self._threads = [
            threading.Thread(target=self._repeat, args=(i, each, seed), daemon=True)
            for i, each in enumerate(references)
        ]
        for thread in self._threads:
            thread.start()

    def _repeat(self, index: int, reference: Reference, seed: int) -> None:
        cuts = random.Random(1000 * seed + index) if reference.is_cut else None
        while not self._is_over:
            try:
                reference.check(ask(self._address, reference.body, cuts))
            except Exception as error:  # a thread's own end would go unnoticed
                self.failures.append(f"{reference.name}: {type(error).__name__}: {error}")
                return
            self.num_answers[index] += 1

    def check(self) -> None:
        assert not self.failures, self.failures

    def stop(self) -> None:
        """Every request that is open ends as it should."""
        self.finish()
        self.check()

    def finish(self, timeout_s: float = 240.0) -> None:
        """No new requests; the open ones end, well or not."""
        self._is_over = True
        wait_for(
            lambda: not any(thread.is_alive() for thread in self._threads),
            "every open request has ended",
            timeout_s,
        )
