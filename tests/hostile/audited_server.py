"""`python -m tests.hostile.audited_server serve ...`: the real server, but that its api writes down each call
that looks at the file system or for another host, into `calls` in the directory for temporary files.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

CALLS = "calls"
_EVENTS = ("open", "import", "os.", "shutil.", "glob.", "pathlib.", "tempfile.", "subprocess.")
_OF_HOSTS = ("socket.connect", "socket.get", "urllib.", "http.", "ctypes.")
_SILENT = ("stat", "lstat", "access", "readlink", "statvfs")  # that raise no event
_BOOT = (
    "import sys; sys.path[:] = sys.argv.pop().split(':'); "
    "from tests.hostile.audited_server import run_api; run_api({path!r})"
)


def run_api(path: str) -> None:
    """In the api's process."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(event: str, *arguments: object) -> None:
        os.write(file, f"{event} {arguments!r:.300}\n".encode(errors="backslashreplace"))

    def on_event(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith((*_EVENTS, *_OF_HOSTS)):
            note(event, *arguments)

    for name in _SILENT:
        setattr(os, name, _noted(note, name, getattr(os, name)))
    sys.addaudithook(on_event)
    from server.processes import main

    main()


def _noted(
    note: Callable[..., None], name: str, function: Callable[..., Any]
) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        note(name, *args)
        return function(*args, **options)

    return call


def main() -> None:
    """In the supervisor's."""
    import server.serve
    from server.cli import main as run

    python_child = server.serve.python_child
    boot = _BOOT.format(path=str(Path(tempfile.gettempdir()) / CALLS))

    def child(name: str, *args: Any, **options: Any) -> Any:
        spec = python_child(name, *args, **options)
        return replace(spec, argv=[sys.executable, "-c", boot, name]) if "api" in name else spec

    server.serve.python_child = child
    sys.exit(run())


if __name__ == "__main__":
    main()
