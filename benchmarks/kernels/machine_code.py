"""What a compiled kernel's machine code tells without a GPU: registers, memory, and which instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton

from benchmarks.kernels.ptx_loads import load_widths
from benchmarks.kernels.targets import Target

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# One SASS instruction: /*0150*/ @!P0 LDG.E.128 R12, desc[UR4][R8.64] ;   From sm_100 on the tensor
# cores' instructions begin with UTC (UTCHMMA); before that HGMMA is a warp group's, HMMA a warp's.
_SASS = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_MATRIX = re.compile(r"(UTC\w*MMA|[HQI]GMMA|[HQDI]MMA)\b")
_AMD = re.compile(r"^\s+([a-z]\w+)", re.MULTILINE)
_AMD_LOAD = re.compile(r"(?:global|buffer)_load_(?!lds)\w+")
_AMD_BYTES = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4}


@dataclass(frozen=True, slots=True)
class MachineCode:
    """One kernel for one target. AMD: `registers` are VGPRs, `local_ops` scratch loads and stores."""

    registers: int
    shared_bytes: int
    local_bytes: int  # stack of one thread
    local_ops: int  # LDL and STL, or scratch_*
    spills: int  # AMD only: VGPRs that did not fit
    num_warps: int
    num_instructions: int
    matrix: dict[str, int]  # HGMMA: 24
    loads: dict[str, int]  # of global memory, by instruction and bytes of a thread: LDGSTS.16: 8
    widths: dict[str, dict[int, int]]  # by pointer parameter: bytes of one thread's load, how many


def read(compiled: Any, target: Target) -> MachineCode:
    """`compiled` is what Triton's JIT returns: a CompiledKernel."""
    return _read_nvidia(compiled, target) if target.is_nvidia else _read_amd(compiled)


def _read_nvidia(compiled: Any, target: Target) -> MachineCode:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = _tool("cuobjdump", "-res-usage", cubin.name)
        sass = _SASS.findall(_tool("nvdisasm", "-c", cubin.name))
    resources = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", usage)}
    reserved = min(target.reserved_shared_bytes, resources["SHARED"])
    return MachineCode(
        registers=resources["REG"],
        shared_bytes=compiled.metadata.shared + resources["SHARED"] - reserved,
        local_bytes=resources["STACK"] + resources["LOCAL"],
        local_ops=sum(name.split(".")[0] in ("LDL", "STL") for name in sass),
        spills=0,
        num_warps=compiled.metadata.num_warps,
        num_instructions=len(sass),
        matrix=_count(found[1] for name in sass if (found := _MATRIX.match(name))),
        loads=_count(_sass_load(name) for name in sass if name.startswith(("LDG.", "LDGSTS."))),
        widths=load_widths(compiled.asm["ptx"], _runtime_parameters(compiled)),
    )


def _read_amd(compiled: Any) -> MachineCode:
    code = compiled.asm["amdgcn"]
    notes = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)\b", code)}
    names = _AMD.findall(code.split(".section\t.rodata", 1)[0])
    return MachineCode(
        registers=notes["vgpr_count"],
        shared_bytes=compiled.metadata.shared,
        local_bytes=notes["private_segment_fixed_size"],
        local_ops=sum(name.startswith("scratch_") for name in names),
        spills=notes["vgpr_spill_count"],
        num_warps=compiled.metadata.num_warps,
        num_instructions=len(names),
        matrix=_count("MFMA" for name in names if name.startswith("v_mfma")),
        loads=_count(_amd_load(name) for name in names if _AMD_LOAD.match(name)),
        widths={},
    )


def _tool(name: str, *arguments: str) -> str:
    command = [str(_TOOLS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _runtime_parameters(compiled: Any) -> dict[str, str]:
    """Names and types of the parameters that the machine code still has, in order."""
    return {name: kind for name, kind in compiled.src.signature.items() if kind != "constexpr"}


def _sass_load(name: str) -> str:
    """LDG.E.128.CONSTANT -> LDG.16"""
    first, *modifiers = name.split(".")
    bits = next((int(m.lstrip("US")) for m in modifiers if re.fullmatch(r"[US]?\d+", m)), 32)
    return f"{first}.{bits // 8}"


def _amd_load(name: str) -> str:
    return f"load.{next((size for kind, size in _AMD_BYTES.items() if name.endswith(kind)), 2)}"


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
