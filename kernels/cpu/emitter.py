"""Loads and arithmetic of the attention kernels in LLVM, on vectors of as many lanes as the host has."""

from __future__ import annotations

from typing import Any, Literal

from llvmlite import ir
from numba.core import cgutils

from kernels.cpu.tile import GEOMETRY

Kind = Literal["f32", "bf16"]
LANES = GEOMETRY.lanes
F32, I64 = ir.FloatType(), ir.IntType(64)
FLOATS = ir.VectorType(F32, LANES)
_I16, _I32 = ir.IntType(16), ir.IntType(32)
INTS, _SHORTS = ir.VectorType(_I32, LANES), ir.VectorType(_I16, LANES)


class Emitter:
    """Loads and arithmetic on either a vector of lanes or, for the rest of a row, one scalar."""

    def __init__(self, builder: Any, kind: Kind, is_vector: bool) -> None:
        self._builder = builder
        self._kind = kind
        self.floats: Any = FLOATS if is_vector else F32
        self._ints: Any = INTS if is_vector else _I32
        self._shorts: Any = _SHORTS if is_vector else _I16
        self._shift = ir.Constant(self._ints, [16] * LANES if is_vector else 16)
        self.zero = ir.Constant(self.floats, [0.0] * LANES if is_vector else 0.0)
        suffix = f"v{LANES}f32" if is_vector else "f32"
        signature = ir.FunctionType(self.floats, [self.floats] * 3)
        insert: Any = cgutils.get_or_insert_function
        self._fma = insert(builder.module, signature, f"llvm.fma.{suffix}")

    def load(self, address: Any) -> Any:
        return self._builder.load(self._at(address, self.floats), align=4)

    def load_cached(self, address: Any) -> Any:
        if self._kind == "f32":
            return self.load(address)
        shorts = self._builder.load(self._at(address, self._shorts), align=2)
        bits = self._builder.shl(self._builder.zext(shorts, self._ints), self._shift)
        return self._builder.bitcast(bits, self.floats)

    def prefetch(self, address: Any) -> None:
        pointer = ir.IntType(8).as_pointer()
        insert: Any = cgutils.get_or_insert_function
        signature = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
        function = insert(self._builder.module, signature, "llvm.prefetch.p0")
        is_read, to_l2, is_data = _I32(0), _I32(2), _I32(1)
        target = self._builder.inttoptr(address, pointer)
        self._builder.call(function, [target, is_read, to_l2, is_data])

    def store(self, value: Any, address: Any) -> None:
        self._builder.store(value, self._at(address, self.floats), align=4)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self._builder.call(self._fma, [a, b, c])

    def splat(self, scalar: Any) -> Any:
        if self.floats is F32:
            return scalar
        undefined = ir.Constant(FLOATS, ir.Undefined)
        first = self._builder.insert_element(undefined, scalar, _I32(0))
        return self._builder.shuffle_vector(first, undefined, ir.Constant(INTS, [0] * LANES))

    def sum(self, vector: Any) -> Any:
        """Halves onto halves: the same tree on every CPU of this width."""
        width = LANES
        while width > 1:
            width //= 2
            places = [*range(width, 2 * width), *range(LANES - width)]
            shuffled = self._builder.shuffle_vector(vector, vector, ir.Constant(INTS, places))
            vector = self._builder.fadd(vector, shuffled)
        return self._builder.extract_element(vector, _I32(0))

    def add_halves(self, a: Any, b: Any, low: list[int], half: int) -> Any:
        """Lanes `low` of a, then of b, plus the lanes `half` above each of them."""
        places = [*low, *(lane + LANES for lane in low)]
        lower = self._builder.shuffle_vector(a, b, ir.Constant(INTS, places))
        places = [place + half for place in places]
        return self._builder.fadd(
            lower, self._builder.shuffle_vector(a, b, ir.Constant(INTS, places))
        )

    def transpose(self, rows: list[Any]) -> list[Any]:
        """Lane i of vector j becomes lane j of vector i, of as many vectors as lanes: one bit of the two
        numbers is exchanged in each round, by a shuffle of two vectors."""
        bit = LANES // 2
        while bit:
            low = [lane if not lane & bit else LANES + lane - bit for lane in range(LANES)]
            high = [lane + bit if not lane & bit else LANES + lane for lane in range(LANES)]
            swapped = list(rows)
            for i in (i for i in range(LANES) if not i & bit):
                pair = rows[i], rows[i + bit]
                swapped[i] = self._builder.shuffle_vector(*pair, ir.Constant(INTS, low))
                swapped[i + bit] = self._builder.shuffle_vector(*pair, ir.Constant(INTS, high))
            rows, bit = swapped, bit // 2
        return rows

    def _at(self, address: Any, of: Any) -> Any:
        return self._builder.inttoptr(address, of.as_pointer())


def offset(builder: Any, base: Any, index: Any, size: int) -> Any:
    return builder.add(base, builder.mul(index, I64(size)))
