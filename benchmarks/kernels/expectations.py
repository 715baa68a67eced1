"""What a kernel's machine code must show, and the sentences that say what it does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from benchmarks.kernels.machine_code import MachineCode
from benchmarks.kernels.targets import Target


@dataclass(frozen=True, slots=True)
class Expectation:
    """Beside what holds for every kernel: shared memory that fits; on sm_90 no local memory."""

    is_wgmma: bool = (
        False  # products of bf16 or fp16: Hopper's warp-group instruction, for one order
    )
    # By pointer: what a thread reads at least, and how many loads take one element by its id.
    load_bytes: Mapping[str, int] = field(default_factory=dict)
    num_single: Mapping[str, int] = field(default_factory=dict)


def complaints(code: MachineCode, expected: Expectation, target: Target) -> Iterator[str]:
    """Each goes on where a sentence has named the kernel and the target."""
    if code.shared_bytes > target.max_shared_bytes:
        yield (
            f"needs {code.shared_bytes:,} bytes of shared memory,"
            f" and {target.name} gives a program {target.max_shared_bytes:,}"
        )
    if target.is_nvidia:
        yield from _narrow_loads(code, expected)
    if not target.is_judged:
        return
    if code.local_ops:
        yield f"has {code.local_ops} loads and stores of local memory, so registers do not hold it"
    if expected.is_wgmma and list(code.matrix) != ["HGMMA"]:
        yield f"multiplies with {' and '.join(code.matrix) or 'FFMA'}, where HGMMA alone is meant"


def _narrow_loads(code: MachineCode, expected: Expectation) -> Iterator[str]:
    for pointer, num_bytes in expected.load_bytes.items():
        widths = code.widths.get(pointer, {})
        narrow = {width: number for width, number in widths.items() if width < num_bytes}
        if not widths:
            yield f"is meant to read {num_bytes} bytes a thread through {pointer}, but never reads it"
        elif sum(narrow.values()) > expected.num_single.get(pointer, 0):
            yield (
                f"reads {min(narrow)} bytes a thread through {pointer}, where {num_bytes} are meant"
            )
