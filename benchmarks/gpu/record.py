"""gpu.json: one document that each part is saved into as it goes, so that a run can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = "gpu.json"
DONE = "done"


class Record:
    """The document of one folder. One process writes at a time; a write is whole or not there."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.document: dict[str, Any] = {"parts": {}}
        if self.path.exists():
            self.document = json.loads(self.path.read_text())

    @property
    def parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = self.document["parts"]
        return parts

    def save(self, **fields: Any) -> None:
        self.document.update(fields)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(self.document, indent=1) + "\n")
        os.replace(draft, self.path)

    def save_part(self, name: str, part: Mapping[str, Any]) -> None:
        self.parts[name] = dict(part)
        self.save()

    def is_done(self, name: str) -> bool:
        return bool(self.parts.get(name, {}).get("status") == DONE)

    def figures(self) -> dict[str, float]:
        """All figures there are, by part.name."""
        return {
            f"{part}.{name}": value
            for part, found in self.parts.items()
            for name, value in found.get("figures", {}).items()
        }
