"""What the server says of itself on /metrics."""

from __future__ import annotations

import re

from benchmarks.soak.wire import ask, request
from benchmarks.soak.world import key

_LINE = re.compile(r"^([a-z][\w:]*)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)
_BY_LABEL = re.compile(r'(?:queue|cause)="([^"]+)"')  # the others are added up
_TOTAL_BLOCKS = re.compile(r'num_gpu_blocks="(\d+)"')


async def scrape(port: int) -> dict[str, float]:
    """By name without its prefix, with the queue's or the cause in brackets. On a connection that is closed
    at once, and is counted."""
    page = (await ask(port, request(key("metrics"), "/metrics"))).body.decode()
    gauges: dict[str, float] = {}
    for name, labels, value in _LINE.findall(page):
        label = _BY_LABEL.search(labels)
        short = name.partition(":")[2] + (f"[{label[1]}]" if label else "")
        gauges[short] = gauges.get(short, 0.0) + float(value)
    total = _TOTAL_BLOCKS.search(page)
    num_blocks = int(total[1]) if total else 0
    gauges["used_blocks"] = round(gauges["kv_cache_usage_perc"] * num_blocks)
    return gauges
