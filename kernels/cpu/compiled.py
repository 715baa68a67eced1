"""How a CPU kernel is compiled: without the GIL, divisions that do not raise, cached where possible."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(*, parallel: bool = False, fastmath: set[str] | None = None) -> Callable[[Any], Any]:
    """Decorator of a kernel that Python calls. `fastmath` may hold "reassoc" and "contract" only.

    numba refuses `cache=True` where no cache directory is writable (NUMBA_CACHE_DIR, beside the file,
    the user's): then the kernel is compiled anew at every start, and a warning says so.
    """
    assert (fastmath or set()) <= {"reassoc", "contract"}, "full fastmath deletes NaN checks"
    options: dict[str, Any] = {
        "nogil": True, "error_model": "numpy", "parallel": parallel, "fastmath": fastmath or False
    }  # fmt: skip

    def decorate(function: Any) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError as error:
            warnings.warn(f"{function.__name__} is compiled at every start: {error}", stacklevel=2)
            return njit(**options)(function)

    return decorate
