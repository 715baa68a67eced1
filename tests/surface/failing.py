"""`python -m tests.surface.failing serve ...`: the server, with an engine that fails while it starts, in
words that nobody shall read.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any
from unittest import mock

from server.child import ChildSpec
from tests.surface.exercise import CANARY

_BOOT = (
    "import sys; sys.path[:] = sys.argv.pop().split(':'); from tests.surface.failing import engine; "
    "engine()"
)


def engine() -> None:
    from server.processes import main

    with mock.patch("server.tokenizer.load_tokenizer", _fail):
        main()


def _fail(model: str) -> None:
    try:
        raise KeyError(CANARY)
    except KeyError as error:
        raise ValueError(f"{model}: {CANARY}") from error


def main() -> None:
    from server import serve
    from server.cli import main as run

    spawned_as = serve.python_child

    def python_child(name: str, *args: Any, **options: Any) -> ChildSpec:
        spec = spawned_as(name, *args, **options)
        if not name.startswith("engine"):
            return spec
        return replace(spec, argv=[sys.executable, "-c", _BOOT, name])

    with mock.patch("server.serve.python_child", python_child):
        sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
