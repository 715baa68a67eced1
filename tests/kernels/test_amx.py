"""AMX is used with the system's permission only, and no call leaves it in use."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

import numba
import pytest
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from kernels.cpu import kinds
from kernels.cpu import linear as cpu
from kernels.cpu.arrays import as_array
from kernels.cpu.kinds import BF16_KINDS, Kind, bf16_kinds, request_amx

needs_amx = pytest.mark.skipif(Kind.BF16_AMX not in BF16_KINDS, reason="no AMX here")

# A process that runs a bf16 linear, and where asked to has itself refused the request for AMX before.
_PROGRAM = """
import ctypes, struct, sys

def refuse_amx():
    def jump(code, k, yes, no):
        return struct.pack("HBBI", code, yes, no, k)
    load, equal, give = 0x20, 0x15, 0x06
    allow, refuse = 0x7FFF0000, 0x00050001
    rules = [
        jump(load, 0, 0, 0), jump(equal, 158, 0, 3),
        jump(load, 16, 0, 0), jump(equal, 0x1023, 0, 1),
        jump(give, refuse, 0, 0), jump(give, allow, 0, 0),
    ]
    code = ctypes.create_string_buffer(b"".join(rules))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(code)))
    prctl = ctypes.CDLL(None).prctl
    words = [ctypes.c_ulong(value) for value in (0, 0, 0)]
    if prctl(38, ctypes.c_ulong(1), *words) or prctl(22, ctypes.c_ulong(2), program):
        sys.exit(77)

if "refuse" in sys.argv:
    refuse_amx()
import torch
from kernels.cpu import linear
from kernels.cpu.arrays import as_array
packed = linear.pack_linear(torch.eye(64), None, torch.bfloat16)
x = torch.ones(17, 64, dtype=torch.bfloat16)
out = torch.zeros(17, 64)
linear.linear(as_array(x), packed, linear.NONE, as_array(out))
assert torch.equal(out, torch.ones(17, 64))
print(packed.kind.name, sum(linear._linear_panels.stats.cache_hits.values()))
"""


def _run(*arguments: str) -> tuple[str, int]:
    """The kind of its weights, and how many compiled kernels it found on disk."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True
    )
    if done.returncode == 77:
        pytest.skip("no seccomp here")
    assert done.returncode == 0, done.stderr
    kind, num_found = done.stdout.split()
    return kind, int(num_found)


@needs_amx
def test_a_process_that_is_refused_runs_the_code_of_one_that_was_not() -> None:
    """The kernels on disk hold AMX instructions: without permission one of them would be a SIGILL."""
    assert _run()[0] == "BF16_AMX"
    kind, num_found = _run("refuse")
    assert kind == Kind.BF16_DOT.name
    assert num_found, "compiled anew: this test has shown nothing"


def test_where_there_is_no_such_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(_: Any) -> Any:
        raise OSError

    monkeypatch.setattr(kinds, "CAN_COMPILE_AMX", True)
    for module, name, value in (
        (kinds, "CAN_COMPILE_AMX", False),
        (kinds.sys, "platform", "darwin"),  # type: ignore[attr-defined]
        (kinds.platform, "machine", lambda: "aarch64"),  # type: ignore[attr-defined]
        (ctypes, "CDLL", no_library),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            assert not request_amx()


def test_the_fastest_kind_comes_first_and_any_cpu_has_one() -> None:
    assert bf16_kinds(True, True) == (Kind.BF16_AMX, Kind.BF16_DOT, Kind.BF16)
    assert bf16_kinds(False, True) == (Kind.BF16_DOT, Kind.BF16)
    assert bf16_kinds(False, False) == (Kind.BF16,)


@intrinsic
def _states_in_use(typing: Any) -> Any:
    """XGETBV with ECX = 1: which parts of a thread's registers a switch has to save."""

    def codegen(context: Any, builder: ir.IRBuilder, _: Any, args: Any) -> ir.Value:
        word = ir.IntType(32)
        signature = ir.FunctionType(ir.IntType(64), [word])
        insert: Any = cgutils.get_or_insert_function
        return builder.call(insert(builder.module, signature, "llvm.x86.xgetbv"), [word(1)])

    return types.uint64(), codegen


@numba.njit
def _are_tiles_in_use() -> bool:
    return bool(_states_in_use() >> 18 & 1)


@needs_amx
@pytest.mark.parametrize("rows", [1, 17])
def test_no_tile_is_in_use_after_a_call(rows: int) -> None:
    packed = cpu.pack_linear(torch.zeros(64, 64), None, torch.bfloat16)
    assert packed.kind == Kind.BF16_AMX
    out = torch.ones(rows, 64)
    x = torch.zeros(rows, 64, dtype=torch.bfloat16)
    cpu.linear(as_array(x), packed, cpu.NONE, as_array(out))
    assert not out.any()
    assert not _are_tiles_in_use()


@needs_amx
def test_a_kind_that_must_not_run_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "BF16_KINDS", (Kind.BF16_DOT, Kind.BF16))
    with pytest.raises(ValueError, match="BF16_AMX"):
        cpu.pack_linear(torch.zeros(64, 64), None, torch.bfloat16, (Kind.BF16_AMX,))
