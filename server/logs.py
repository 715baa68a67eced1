"""Logging of every process: one stream (stderr), as text for people or as JSON lines.

No line holds a traceback with paths, what an exception says of itself, or a library's view of an object: our
own messages are sentences of ours, those of libraries are cut to what is surely theirs.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from types import TracebackType
from typing import Any

from server.config import LogFormat
from server.faults import log_fault, stack_of

_OURS = ("server", "kernels")
_DIRECTORIES = re.compile(r"(?:[\w.+~-]*/)+(?=[\w.+-])")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
# Where a library begins to quote: `Exception in callback f('a prompt')`, `<Task name=... at 0x...>`
_QUOTING = re.compile(r"\s*[(<'\"\[{].*")


class TextFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = f"{self.formatTime(record, self.datefmt)} {self._process:<10}  {said(record)}"
        return f"{line}\n{stack}" if (stack := _stack(record)) else line


class JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "message": said(record),
            **getattr(record, "fields", {}),  # what a line is made of, for machines
        }
        if stack := _stack(record):
            line["traceback"] = stack
        return json.dumps(line, ensure_ascii=False)


def said(record: logging.LogRecord) -> str:
    """Of a library's message its first line: of a warning without directories and addresses of objects, of
    anything else what stands before the first thing that may be a quotation."""
    message = record.getMessage()
    if record.name.split(".")[0] in _OURS:
        return message
    first = message.strip().partition("\n")[0]
    if record.name == "py.warnings":
        return _ADDRESS.sub("0x", _DIRECTORIES.sub("", first))
    return f"{record.name}: {_QUOTING.sub('', first)}"


def _stack(record: logging.LogRecord) -> str:
    error = record.exc_info[1] if record.exc_info else None
    return "" if error is None else stack_of(error)


def set_up_logging(process: str, log_format: LogFormat) -> None:
    """Called once in each process, before anything is logged; `process`: "supervisor", "api 0"..."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if log_format == "json" else TextFormatter(process))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # what libraries warn of, and what nobody catches, belongs in the same stream and format
    logging.captureWarnings(True)
    sys.excepthook = _on_uncaught
    sys.unraisablehook = _on_unraisable
    threading.excepthook = _on_thread_end


def _on_uncaught(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    if not isinstance(error, KeyboardInterrupt):
        log_fault("the process ends", error)


def _on_unraisable(unraisable: Any) -> None:
    if unraisable.exc_value is not None:
        log_fault("an exception that cannot be raised", unraisable.exc_value)


def _on_thread_end(ended: Any) -> None:
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        log_fault("a thread ends", ended.exc_value)
