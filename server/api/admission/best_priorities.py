"""The best priority that requests of each key had lately: what may stand in a body that is not read yet.
Time is an argument."""

from __future__ import annotations

from typing import NamedTuple

_MEMORY_S = 60.0
_MAX_KEYS = 1024  # more are looked through for old ones
DEFAULT = 0  # of a request that asks for none


class _Seen(NamedTuple):
    priority: int
    at_s: float


class BestPriorities:
    """Lower is better. Where all ask for none it costs a look into an empty dictionary."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def add(self, tenant: str, priority: int, now_s: float) -> None:
        if priority < DEFAULT and priority <= self.of(tenant, now_s):
            if len(self._seen) >= _MAX_KEYS:
                self._seen = {
                    name: seen for name, seen in self._seen.items() if _is_recent(seen, now_s)
                }
            self._seen[tenant] = _Seen(priority, now_s)

    def of(self, tenant: str, now_s: float) -> int:
        seen = self._seen.get(tenant)
        return DEFAULT if seen is None or not _is_recent(seen, now_s) else seen.priority


def _is_recent(seen: _Seen, now_s: float) -> bool:
    return now_s - seen.at_s < _MEMORY_S
