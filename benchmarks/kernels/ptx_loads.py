"""How wide a kernel reads global memory through each of its pointers, from its PTX.

An address in PTX is arithmetic over one pointer parameter and over indices. Every register is traced back
through arithmetic to the parameters that it is made of, but not through loads: an index that was read from
memory is no pointer. Addresses that change threads through shared memory are followed: what is read there
may be anything that the stores last before it have left. ptxas keeps the width that it is given.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

_PARAMETER = re.compile(r"\[\w+_param_(\d+)\]")
_STATEMENT = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z]\w*(?:[.:]+\w+)*)\s+([^;]*);", re.MULTILINE)
_REGISTER = re.compile(r"%rd?\d+")  # 64 bits, and the 32-bit halves that shuffles move
_ADDRESS = re.compile(r"\[\s*(%rd\d+)")
_LOAD = re.compile(r"ld\.(?:\w+\.)*?global(?:\.[\w:]+)*?(?:\.v(\d))?\.[usbf](\d+)$")
_COPY_SIZE = re.compile(r"\],\s*(0x[0-9a-f]+|\d+)")

_Statements = list[tuple[str, str]]  # opcode, operands


def load_widths(ptx: str, parameters: dict[str, str]) -> dict[str, dict[int, int]]:
    """For each pointer that is read through: bytes that one thread reads at a time, and by how many loads.

    `parameters`: names and Triton types (`*bf16`, `i32`) of what the machine code takes, in order.
    """
    pointers = {
        i: name for i, (name, kind) in enumerate(parameters.items()) if kind.startswith("*")
    }
    statements: _Statements = _STATEMENT.findall(ptx)
    behind = _pointers_behind(statements, set(pointers))
    widths: dict[str, Counter[int]] = defaultdict(Counter)
    for address, num_bytes in _reads(statements):
        for index in behind.get(address, ()):
            widths[pointers[index]][num_bytes] += 1
    return {name: dict(widths[name]) for name in pointers.values() if name in widths}


def _reads(statements: _Statements) -> Iterator[tuple[str, int]]:
    """Address register and bytes of each read of global memory."""
    for opcode, operands in statements:
        addresses = _ADDRESS.findall(operands)
        if not addresses:
            continue
        if load := _LOAD.match(opcode):
            yield addresses[-1], int(load[1] or 1) * int(load[2]) // 8
        elif opcode.startswith("cp.async.") and (size := _COPY_SIZE.search(operands)):
            yield addresses[-1], int(size[1], 0)


def _pointers_behind(statements: _Statements, pointers: set[int]) -> dict[str, set[int]]:
    """For each register, the pointer parameters that it is made of: sweeps until nothing is added."""
    behind: dict[str, set[int]] = defaultdict(set)
    num_known = -1
    while num_known != (num_known := sum(map(len, behind.values()))):
        for targets, sources in _flows(statements):
            found = set().union(
                *({s} & pointers if isinstance(s, int) else behind[s] for s in sources)
            )
            for target in targets:
                behind[target] |= found
    return behind


def _flows(statements: _Statements) -> Iterator[tuple[list[str], Iterable[str | int]]]:
    """Registers that a statement sets, and the registers or parameters that it makes them from."""
    left: list[str] = []  # registers that the latest stores have left in shared memory
    was_read = False
    for opcode, operands in statements:
        if opcode.startswith("ld.param"):
            index = _PARAMETER.search(operands)
            yield _REGISTER.findall(operands), [int(index[1])] if index else []
        elif opcode.startswith("st.shared"):
            left = [] if was_read else left
            left += _REGISTER.findall(operands.split("]", 1)[1])
            was_read = False
        elif opcode.startswith("ld.shared"):
            was_read = True
            yield _REGISTER.findall(operands.split("[", 1)[0]), left
        elif not opcode.startswith(("ld.", "st.", "atom.", "red.", "cp.", "wgmma.", "mma.")):
            registers = _REGISTER.findall(operands)
            num_targets = 2 if operands.startswith("{") else 1  # mov.b64 {low, high}, whole
            yield registers[:num_targets], registers[num_targets:]
