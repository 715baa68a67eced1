"""Which instructions multiply matrices in this process. Knows no array; imported before any kernel.

Equal bytes hold within a kind: each has an order of additions of its own, the same for any number of rows.
Integers are exact in any order: all kinds of int8 give the same.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from enum import IntEnum

import llvmlite.binding as llvm

# Linux, asm/prctl.h: the registers are handed out on request only, once for a process and its children.
_SYS_ARCH_PRCTL = 158
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18


class Kind(IntEnum):
    """Weights, and what multiplies them."""

    F32 = 0  # FMA
    BF16 = 1  # widened, then FMA: any CPU
    BF16_DOT = 2  # AVX512_BF16, pairs of k
    BF16_AMX = 3  # AMX_BF16, 32 of k at once
    INT8 = 4  # widened, then multiplied: any CPU
    INT8_DOT = 5  # AVX512_VNNI or AVX_VNNI, quads of k
    INT8_AMX = 6  # AMX_INT8, 64 of k at once


def host_features() -> frozenset[str]:
    """The CPU features that numba compiles for."""
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


def can_compile_int8_dot(features: frozenset[str]) -> bool:
    """For the vectors of the host's register tile: of 512 bits, or of 256."""
    return {"avx512f", "avx512vnni"} <= features if "avx512f" in features else "avxvnni" in features


# What can be compiled here; whether it may also run, the operating system says. numba's cache on disk
# knows the CPU, not the permission: its code holds AMX either way, behind a kind that is never chosen.
CAN_COMPILE_DOT = {"avx512f", "avx512bf16"} <= host_features()
CAN_COMPILE_AMX = {"avx512f", "amx-tile", "amx-bf16"} <= host_features()
CAN_COMPILE_INT8_DOT = can_compile_int8_dot(host_features())
CAN_COMPILE_INT8_AMX = CAN_COMPILE_AMX and "amx-int8" in host_features()


def request_amx() -> bool:
    """Whether this process may use AMX from now on. Containers, gVisor and old kernels may refuse."""
    if not CAN_COMPILE_AMX or sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    try:
        syscall = ctypes.CDLL(None).syscall
    except (OSError, AttributeError):
        return False
    syscall.restype = ctypes.c_long
    arguments = _SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA
    return bool(syscall(*map(ctypes.c_long, arguments)) == 0)


def bf16_kinds(has_amx: bool, has_dot: bool) -> tuple[Kind, ...]:
    """The kinds of bf16 that may run, the fastest first."""
    amx = (Kind.BF16_AMX,) if has_amx else ()
    return (*amx, Kind.BF16_DOT, Kind.BF16) if has_dot else (*amx, Kind.BF16)


def int8_kinds(has_amx: bool, has_dot: bool) -> tuple[Kind, ...]:
    """The kinds of int8 that may run, the fastest first. They give the same bits."""
    amx = (Kind.INT8_AMX,) if has_amx else ()
    return (*amx, Kind.INT8_DOT, Kind.INT8) if has_dot else (*amx, Kind.INT8)


_HAS_AMX = request_amx()
BF16_KINDS = bf16_kinds(_HAS_AMX, CAN_COMPILE_DOT)
INT8_KINDS = int8_kinds(_HAS_AMX and CAN_COMPILE_INT8_AMX, CAN_COMPILE_INT8_DOT)
