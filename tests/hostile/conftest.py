"""One server for the session, as processes; the control stream beside it; what must not change. A second one
for those who do not read, as its minute goes by beside all else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.rig import serving, watching
from tests.hostile.stalled import Stalled
from tests.hostile.watch import Watch

_retried: dict[str, int] = {}


@pytest.fixture(scope="session")
def watch(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    directory = tmp_path_factory.mktemp("keys")
    with serving(tiny_model_dir, directory) as server, watching(server) as watch:
        yield watch
        print(f"{watch.control.num_answers} answers of the control stream")
        _retried.update(watch.num_retried)


@pytest.fixture(scope="session")
def _stalled(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stalled]:
    directory = tmp_path_factory.mktemp("stalled")
    with serving(tiny_model_dir, directory) as server, watching(server) as watch:
        stalled = Stalled(watch)
        try:
            yield stalled
        finally:
            stalled.close()


@pytest.fixture(scope="module")
def stalled(_stalled: Stalled) -> Iterator[Stalled]:
    """Its control stream takes no time from what comes in between."""
    _stalled.watch.control.resume()
    yield _stalled
    _stalled.watch.control.pause()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {"test_readers_parked.py": 0, "test_readers_cut.py": 2}
    items.sort(key=lambda item: places.get(item.path.name, 1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _retried:
        terminalreporter.write_line(f"timings taken again, by case: {_retried}")
