"""One server for the session, as processes; the control stream beside it; what must not change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.rig import serving, watching
from tests.hostile.watch import Watch

_retried: dict[str, int] = {}


@pytest.fixture(scope="session")
def watch(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    directory = tmp_path_factory.mktemp("keys")
    with serving(tiny_model_dir, directory) as server, watching(server) as watch:
        yield watch
        print(f"{watch.control.num_answers} answers of the control stream")
        _retried.update(watch.num_retried)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _retried:
        terminalreporter.write_line(f"timings taken again, by case: {_retried}")
