from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.grammar.rig import Rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Rig]:
    """For tests that do nothing to its processes; each takes keys of its own."""
    rig = Rig()
    yield rig
    rig.close()
