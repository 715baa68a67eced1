"""One line on a terminal that says how far a load is. Not a library's: a base install has none."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import TextIO

from server.bench.config import BenchConfig
from server.bench.load import LoadRun

_PERIOD_S = 0.2
_BAR = 24  # characters


class Progress:
    """Silent where `stream` is no terminal."""

    def __init__(self, stream: TextIO, config: BenchConfig) -> None:
        self._stream = stream
        self._config = config
        self._is_shown = stream.isatty()

    async def follow(self, run: LoadRun) -> None:
        """Until it is cancelled; then the line is gone."""
        if not self._is_shown:
            return
        try:
            while True:
                await asyncio.sleep(_PERIOD_S)
                width = shutil.get_terminal_size().columns - 1
                self._write(self.line(run, time.perf_counter())[:width].ljust(width))
        finally:
            self._write("\x1b[K")

    def _write(self, text: str) -> None:
        self._stream.write(f"\r{text}")
        self._stream.flush()

    def line(self, run: LoadRun, now_s: float) -> str:
        ended = [record for record in run.records if record.end_s > record.sent_s]
        done = [record for record in ended if record.failure != "interrupted"]
        failed = sum(not record.is_ok for record in done)
        elapsed_s = now_s - run.started_s
        events = sum(len(record.text_s) for record in run.records)
        share = self._share(run, len(done), elapsed_s)
        bar = "#" * int(share * _BAR)
        return (
            f"{run.load}  [{bar:<{_BAR}}] {share:4.0%}  {len(done):,} done, "
            f"{len(run.records) - len(done):,} in flight, {failed:,} failed, "
            f"{events / max(elapsed_s, 1e-9):,.0f} events/s"
        )

    def _share(self, run: LoadRun, num_done: int, elapsed_s: float) -> float:
        most = self._config.requests_of(run.load)
        by_count = num_done / most if most else 0.0
        by_time = elapsed_s / self._config.duration if self._config.duration else 0.0
        return min(1.0, max(by_count, by_time))
