"""The int8 register tile of every kind of host, against NumPy's integers: other hosts' too."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from kernels.cpu.int8_tile import make_int8_tile, pair_product, widen_quads
from kernels.cpu.kinds import CAN_COMPILE_INT8_DOT, Kind, host_features
from kernels.cpu.tile import Geometry, host_geometry

HOST = host_features()
NONE: frozenset[str] = frozenset()
AVX2 = frozenset({"avx2"})
AVX512 = frozenset({"avx512f", "avx512bw"})
needs_dot = pytest.mark.skipif(not CAN_COMPILE_INT8_DOT, reason="no dot product of bytes here")
needs_512 = pytest.mark.skipif(not AVX512 <= HOST, reason="no AVX-512 here")
needs_avx2 = pytest.mark.skipif(not AVX2 <= HOST, reason="no AVX2 here")

CASES = [
    pytest.param(Kind.INT8_DOT, host_geometry(HOST), HOST, id="dot", marks=needs_dot),
    pytest.param(
        Kind.INT8_DOT, host_geometry(AVX2), HOST, id="dot of 256 bits", marks=[needs_dot, needs_512]
    ),
    pytest.param(Kind.INT8, host_geometry(AVX512), AVX512, id="AVX-512", marks=needs_512),
    pytest.param(Kind.INT8, host_geometry(AVX2), AVX2, id="AVX2", marks=needs_avx2),
    pytest.param(Kind.INT8, host_geometry(NONE), NONE, id="four lanes"),
    pytest.param(Kind.INT8, host_geometry(HOST), NONE, id="host's lanes, no pairs"),
]


def product(tile: Any, kind: Kind, x: Any, w: Any, panel: int, panels: int = 1) -> Any:
    """x [rows, k] uint8 by w [k, panels * panel] int8 in int32."""

    @numba.njit
    def run(x: Any, packed: Any, acc: Any, quads: int) -> None:
        tile(x.ctypes.data, x.strides[0], packed.ctypes.data, acc.ctypes.data, quads)

    rows, k = x.shape
    columns = w.reshape(k // 4, 4, panels, panel)
    packed = np.ascontiguousarray(columns.transpose(2, 0, 3, 1))
    acc = np.full((panels * rows + 1, panel), 77, np.int32)
    if kind == Kind.INT8:
        wide = np.zeros((rows, k // 2), np.uint32)
        widen_quads(x, wide)
        x = wide
    run(x, packed, acc, k // 4)
    assert (acc[-1] == 77).all(), "written past its rows"
    return np.concatenate(acc[:-1].reshape(panels, rows, panel), axis=1)


@pytest.mark.parametrize(("kind", "geometry", "features"), CASES)
@pytest.mark.parametrize("is_full", [False, True])
def test_sums_are_exact(
    kind: Kind, geometry: Geometry, features: frozenset[str], is_full: bool
) -> None:
    rows, panel = geometry.rows if is_full else 1, geometry.lanes * geometry.vectors
    tile = make_int8_tile(rows, kind, geometry, features)
    generator = np.random.default_rng(0)
    for k in (4, 12, 256):
        x = generator.integers(0, 256, (rows, k), np.uint8)
        w = generator.integers(-128, 128, (k, panel), np.int8)
        x[0], w[:, 0], w[:, 1] = 255, -128, 127  # where sums of 16 bits would be cut off
        exact = x.astype(np.int64) @ w.astype(np.int64)
        assert (product(tile, kind, x, w, panel) == exact).all()
    nothing = product(
        tile, kind, np.empty((rows, 0), np.uint8), np.empty((0, panel), np.int8), panel
    )
    assert not nothing.any()


@pytest.mark.parametrize(("kind", "geometry", "features"), CASES)
def test_a_row_goes_through_several_panels_at_once(
    kind: Kind, geometry: Geometry, features: frozenset[str]
) -> None:
    panel = geometry.lanes * geometry.vectors
    tile = make_int8_tile(1, kind, geometry, features, panels=3)
    generator = np.random.default_rng(1)
    x = generator.integers(0, 256, (1, 20), np.uint8)
    w = generator.integers(-128, 128, (20, 3 * panel), np.int8)
    exact = x.astype(np.int64) @ w.astype(np.int64)
    assert (product(tile, kind, x, w, panel, 3) == exact).all()


def test_the_product_of_pairs_is_the_hosts() -> None:
    assert pair_product(16, AVX512) == "llvm.x86.avx512.pmaddw.d.512"
    assert pair_product(8, AVX2) == "llvm.x86.avx2.pmadd.wd"
    assert (
        pair_product(16, frozenset({"avx512f"})) == ""
    )  # Xeon Phi has no 16-bit lanes of that width
    assert pair_product(4, NONE) == ""
