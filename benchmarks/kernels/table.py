"""The table of what the machine code tells, one for each target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.kernels.machine_code import MachineCode
from benchmarks.kernels.worker import Outcome

_COLUMNS = ("kernel", "configuration", "warps", "regs", "shared", "local", "matrix", "loads")


def print_tables(outcomes: Sequence[Outcome], targets: Iterable[str]) -> None:
    for target in targets:
        rows = list(_rows([outcome for outcome in outcomes if outcome.target == target]))
        print(f"\n{target}")
        _print([_COLUMNS, tuple("-" * len(name) for name in _COLUMNS), *rows])


def _rows(outcomes: Sequence[Outcome]) -> Iterable[tuple[str, ...]]:
    """One for each binary: configurations that share it are counted behind the first."""
    configs: dict[str, list[str]] = {}
    first: dict[str, Outcome] = {}
    for outcome in outcomes:
        if outcome.code is not None:
            first.setdefault(outcome.key, outcome)
            configs.setdefault(outcome.key, []).append(outcome.config)
    for key, outcome in first.items():
        assert outcome.code is not None
        others = len(set(configs[key])) - 1
        config = outcome.config + (f" (+{others})" if others else "")
        yield (outcome.kernel, config, *_cells(outcome.code))


def _cells(code: MachineCode) -> Iterable[str]:
    yield str(code.num_warps)
    yield f"{code.registers}" + (f" ({code.spills} spilled)" if code.spills else "")
    yield f"{code.shared_bytes:,}"
    yield (
        f"{code.local_ops} ops, {code.local_bytes} B" if code.local_ops or code.local_bytes else "-"
    )
    yield _counts(code.matrix)
    yield _counts(code.loads)


def _counts(counts: dict[str, int]) -> str:
    return " ".join(f"{name}x{count}" for name, count in counts.items()) or "-"


def _print(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        print("  " + "  ".join(map(str.ljust, row, widths)).rstrip())
