"""An excerpt in the Trace Event Format, which chrome://tracing and Perfetto's viewer open: complete
events ("X") nested by time, instants ("i") for what the client read, metadata ("M") for names. Times in
microseconds.

Written by hand: it is a list of small objects. A tracer that writes it (viztracer) would time every Python
function of the serving processes, which costs more than what is to be seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from server.profiling.excerpt import Excerpt
from server.profiling.parts import Part, short_label
from server.profiling.steps import rows_of
from server.profiling.tree import Node

_CLIENT = "client"


def write_trace(path: Path, excerpt: Excerpt, about: dict[str, Any]) -> None:
    document = {
        "displayTimeUnit": "ns",
        "otherData": about,
        "traceEvents": trace_events(excerpt),
    }
    path.write_bytes(msgspec.json.encode(document))


def trace_events(excerpt: Excerpt) -> list[dict[str, Any]]:
    """Names first, then all others by time, the longer one first."""
    names: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    for pid, (name, roots) in enumerate(excerpt.processes.items(), 1):
        names.append(_name("process_name", pid, 0, name))
        for root in roots:
            events += [_complete(pid, node, excerpt.start_ns) for node in root.walk()]
    client_pid = len(excerpt.processes) + 1
    names.append(_name("process_name", client_pid, 0, _CLIENT))
    for tid, (stream, times_ns) in enumerate(excerpt.events_ns.items(), 1):
        names.append(_name("thread_name", client_pid, tid, stream))
        events += [_instant(client_pid, tid, at_ns - excerpt.start_ns) for at_ns in times_ns]
    events.sort(key=lambda event: (event["ts"], -event.get("dur", 0)))
    return names + events


def _name(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _complete(pid: int, node: Node, zero_ns: int) -> dict[str, Any]:
    span = node.span
    event: dict[str, Any] = {
        "ph": "X",
        "name": short_label(span.part),
        "cat": "span",
        "pid": pid,
        "tid": 0,
        "ts": (span.start_ns - zero_ns) / 1e3,
        "dur": (span.end_ns - span.start_ns) / 1e3,
    }
    if span.part == Part.TURN:
        num_rows, num_prompt = rows_of(node)
        event["args"] = {"rows": num_rows, "of prompts": num_prompt}
    return event


def _instant(pid: int, tid: int, at_ns: int) -> dict[str, Any]:
    return {
        "ph": "i", "name": "event read", "cat": "client", "pid": pid, "tid": tid, "s": "t",
        "ts": at_ns / 1e3,
    }  # fmt: skip
