"""`python -m tests.chaos.poisoned_server serve ...`: the real server, but that its engine aborts where a
step admits a prompt that begins with POISON.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any

POISON = 123
_BOOT = (
    "import sys; sys.path[:] = sys.argv.pop().split(':'); "
    "from tests.chaos.poisoned_server import run_engine; run_engine()"
)


def run_engine() -> None:
    """In the engine's process."""
    from server.processes import main
    from server.runner.cpu_runner import CpuRunner

    dispatch = CpuRunner.dispatch

    def poisoned(runner: Any, batch: Any) -> Any:
        if any(row.token_ids[0] == POISON for row in batch.new_rows):
            os.abort()
        return dispatch(runner, batch)

    CpuRunner.dispatch = poisoned  # type: ignore[method-assign]
    main()


def main() -> None:
    """In the supervisor's."""
    import server.serve
    from server.cli import main as run

    python_child = server.serve.python_child

    def child(name: str, *args: Any, **options: Any) -> Any:
        spec = python_child(name, *args, **options)
        if not name.startswith("engine"):
            return spec
        return replace(spec, argv=[sys.executable, "-c", _BOOT, name])

    server.serve.python_child = child
    sys.exit(run())


if __name__ == "__main__":
    main()
