"""A machine without a writable cache directory still runs: it warns and compiles at every start."""

from __future__ import annotations

import numba
import pytest

from kernels.cpu import compiled


def test_no_writable_cache_only_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    real = numba.njit

    def refuse_cache(**options: object) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(compiled, "njit", refuse_cache)
    with pytest.warns(UserWarning, match="compiled at every start"):
        double = compiled.kernel()(lambda x: x + x)
    assert double(3) == 6
