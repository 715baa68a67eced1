"""Logging of every process: one stream (stderr), as text for people or as JSON lines."""

from __future__ import annotations

import json
import logging
import sys
import time

from server.config import LogFormat


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
            "message": record.getMessage(),
            **getattr(record, "fields", {}),  # what a line is made of, for machines
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(process: str, log_format: LogFormat) -> None:
    """Called once in each process, before anything is logged; `process`: "supervisor", "api 0"..."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JsonFormatter(process))
    else:
        handler.setFormatter(
            logging.Formatter(f"%(asctime)s {process:<10}  %(message)s", "%H:%M:%S")
        )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # tracebacks of warnings from libraries belong in the same stream and format
    logging.captureWarnings(True)
