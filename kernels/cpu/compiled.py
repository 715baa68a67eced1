"""How a CPU kernel is compiled: without the GIL, divisions that do not raise, cached where possible."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])

_NOT_CACHED = "no directory for compiled kernels is writable: they are compiled at every start"


def kernel(
    *, parallel: bool = False, fastmath: set[str] | None = None
) -> Callable[[Function], Function]:
    """Decorator of a kernel that Python calls. `fastmath` may hold "reassoc" and "contract" only.

    numba refuses `cache=True` where no cache directory is writable (NUMBA_CACHE_DIR, beside the file,
    the user's): then the kernel is compiled anew at every start, and a warning says so.
    """
    assert (fastmath or set()) <= {"reassoc", "contract"}, "full fastmath deletes NaN checks"
    options: dict[str, Any] = {
        "nogil": True, "error_model": "numpy", "parallel": parallel, "fastmath": fastmath or False
    }  # fmt: skip

    def decorate(function: Function) -> Function:
        try:
            compiled: Function = njit(cache=True, **options)(function)
        except RuntimeError:
            warnings.warn(_NOT_CACHED, stacklevel=1)  # the same text and place: shown once
            compiled = njit(**options)(function)
        return compiled

    return decorate
