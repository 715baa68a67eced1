"""Imported (or loaded by pytest's -p), it stands in for msgspec where that is missing.

The engine's module of frames defines structs of it; offline, and in the runner's tests, none is ever made.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any


class Struct:
    """Takes the class arguments of msgspec.Struct, and does nothing with them."""

    def __init_subclass__(cls, **options: Any) -> None:
        pass


if importlib.util.find_spec("msgspec") is None:
    _module = ModuleType("msgspec")
    _module.Struct = Struct  # type: ignore[attr-defined]
    sys.modules["msgspec"] = _module
