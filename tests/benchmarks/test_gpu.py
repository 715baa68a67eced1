"""`make gpu` without a GPU: a dry run of every line of it, and its pure parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.__main__ import is_wrong, to_run
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.bits import tile_changes
from benchmarks.gpu.goals import GOALS, judge
from benchmarks.gpu.idle import Busy, idle_share
from benchmarks.gpu.paged import lognormal
from benchmarks.gpu.parts import DEFAULT_NAMES, DRY_NAMES, FIRST_BUDGET_S, PARTS
from benchmarks.gpu.plot import draw, score
from benchmarks.gpu.random_model import config_of, kv_bytes, step_flops, step_weight_bytes
from benchmarks.gpu.record import Record
from benchmarks.gpu.table import cell, goal_lines, part_lines
from benchmarks.gpu.timing import num_copies, ratio
from kernels.tuning import gemm_tile, is_split


def test_a_dry_run_goes_through_every_part_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in DRY_NAMES:
        assert f"\n{name}: " in f"\n{done.stdout}"
    assert done.stdout.count("[done,") == len(DRY_NAMES)
    assert "No figure is real" in done.stdout
    assert "  met" not in done.stdout and "missed" not in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is measured")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("torch sees no GPU here")
    assert list(tmp_path.iterdir()) == []


def test_the_engine_is_measured_without_what_a_gpu_machine_may_lack() -> None:
    lacking = [
        "msgspec",
        "numba",
        "transformers",
        "matplotlib",
        "safetensors",
        "hypothesis",
        "fastapi",
    ]
    code = f"""
import sys
class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {lacking}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Lacking())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {lacking} else real(name, *rest)
import benchmarks.gpu.child, benchmarks.gpu.compile, benchmarks.gpu.warm_rivals, benchmarks.gpu.__main__
import benchmarks.gpu.continuous_batching, benchmarks.gpu.machine, torch
from benchmarks.gpu.parts import PARTS
import importlib
for part in PARTS.values():
    module, _, function = part.work.partition(":")
    assert hasattr(importlib.import_module("benchmarks.gpu." + module), function), part
print(sorted(benchmarks.gpu.machine.facts(torch.device("cpu"))["missing"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'msgspec', 'numba'" in done.stdout


# ---- goals -----------------------------------------------------------------------------------------


def test_a_goal_is_met_missed_or_not_measured() -> None:
    judged = {
        each.goal.figure: each
        for each in judge(
            {
                "decode.16k.share_of_read": 0.60,
                "decode.64k.share_of_read": 0.849,
                "bits.rows_different": 0,
                "lm_head.fused_over_alone": 1.06,
            }
        )
    }
    assert judged["decode.16k.share_of_read"].verdict == "met"
    assert judged["decode.64k.share_of_read"].verdict == "missed"
    assert judged["bits.rows_different"].verdict == "met"
    assert judged["lm_head.fused_over_alone"].verdict == "missed"
    assert judged["sampler.top_k_top_p.speedup"].verdict == "not measured"
    assert len(judge({})) == len(GOALS)


def test_every_goal_names_a_part() -> None:
    for goal in GOALS:
        part, _, figure = goal.figure.replace("1.5B", "1_5B").partition(".")
        assert part.replace("1_5B", "1.5B") in PARTS and figure


def test_the_default_parts_leave_time_for_the_others() -> None:
    """Budgets are what a part may take at most; if several took that, the last would be left out."""
    assert all(part.budget_s <= 150 for part in PARTS.values())
    assert FIRST_BUDGET_S + max(PARTS[name].budget_s for name in DEFAULT_NAMES[2:]) < 300


def test_what_went_wrong_is_told_apart_from_what_is_slow() -> None:
    assert is_wrong({"figures": {"failed": 1}})
    assert is_wrong({"figures": {"rows_different": 2}})
    assert is_wrong({"notes": ["WRONG: ours differs from SDPA by 1, more than 0.03."]})
    assert not is_wrong({"figures": {"failed": 0, "price": 2.0}, "notes": ["Out of time."]})


# ---- the record, tables and plot --------------------------------------------------------------------


def test_a_record_is_resumed(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.save_part("limits", {"status": "done", "figures": {"read": 4e12}})
    record.save_part("decode", {"status": "stopped", "figures": {"64k.share_of_read": 0.5}})
    again = Record(tmp_path)
    assert again.figures() == {"limits.read": 4e12, "decode.64k.share_of_read": 0.5}
    again.save_part("compile", {"status": "done"})
    # The limits are of the run that a share is of; and another machine's cache may be empty.
    assert to_run(["compile", "decode"], again, is_again=False) == ["compile", "limits", "decode"]
    assert to_run(["decode"], again, is_again=False) == ["limits", "decode"]
    assert to_run(["limits", "decode"], again, is_again=True) == ["limits", "decode"]
    assert to_run(["compile", "limits"], again, is_again=False) == []
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"]["limits"]["status"] == "done"


def test_cells_are_short() -> None:
    shown = [cell(value) for value in (None, "us", 12, 0.0, 0.8512, 12345.6, 1.5, 3e-7)]
    assert shown == ["-", "us", "12", "0", "0.851", "12,346", "1.5", "3e-07"]


def test_a_part_tells_its_error_and_its_notes() -> None:
    part = {"title": "limits", "status": "failed", "error": "no memory", "seconds": 3.0}
    lines = list(part_lines("limits", {**part, "rows": [["read", 1.5, None]], "notes": ["Late."]}))
    assert lines[0] == "limits: limits [failed: no memory, 3.0 s]"
    assert lines[1].split() == ["read", "1.5", "-"]
    assert lines[2] == "  ! Late."


def test_the_goals_table_has_a_line_for_each_and_the_plot_one_bar(tmp_path: Path) -> None:
    judged = judge({"norm.share_of_copy": 0.46, "lm_head.fused_over_alone": 1.0})
    assert len(list(goal_lines(judged))) == len(GOALS) + 1
    measured = {each.goal.figure: score(each) for each in judged if each.measured}
    assert measured["norm.share_of_copy"] == pytest.approx(0.5)
    assert measured["lm_head.fused_over_alone"] == pytest.approx(1.05)
    assert draw(tmp_path / "gpu.png", "title", judged)
    assert (tmp_path / "gpu.png").stat().st_size > 1000
    assert not draw(tmp_path / "none.png", "title", judge({}))


# ---- arithmetic -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bytes_each", "copies"), [(1e6, 180), (50e6, 4), (1, 256), (4e9, 3), (20e9, 1)]
)
def test_inputs_are_copied_until_l2_is_cold(bytes_each: float, copies: int) -> None:
    assert num_copies(bytes_each, 60e6) == copies


def test_the_worst_of_several_is_not_told_where_one_is_missing() -> None:
    bench = Bench(torch.device("cpu"), True, 0.0)
    bench.worst("late", [1.0], 2, max)
    bench.worst("failed", [1.0, float("nan")], 2, max)
    bench.worst("whole", [1.0, 3.0], 2, max)
    assert bench.figures == {"whole": 3.0}


def test_ours_apart_from_a_rival_is_told() -> None:
    bench = Bench(torch.device("cpu"), True, 0.0)
    for name, theirs in (("near", 1.01), ("far", 2.0), ("broken", float("nan"))):
        bench.agree(name, torch.ones(3), torch.tensor([1.0, 1.0, theirs]), 0.03)
    assert [note.split()[4] for note in bench.notes] == ["far", "broken"]
    assert all(note.startswith("WRONG") for note in bench.notes)


def test_a_ratio_is_taken_within_rounds() -> None:
    samples = {"a": [1.0, 4.0, 9.0], "b": [1.0, 2.0, 3.0]}
    assert ratio(samples, "a", "b") == 2.0
    assert ratio(samples, "a", "missing") != ratio(samples, "a", "missing")


@pytest.mark.parametrize(("num_rows", "total"), [(64, 65536), (5, 80), (7, 1000)])
def test_ragged_lengths_add_up(num_rows: int, total: int) -> None:
    lengths = lognormal(num_rows, total)
    assert len(lengths) == num_rows and sum(lengths) == total and min(lengths) >= 16
    assert lengths == lognormal(num_rows, total)


def test_idle_time_is_what_no_work_covers_between_two_steps() -> None:
    busy = [
        Busy("_decode_inputs_kernel", 0, 10),
        Busy("_mlp_kernel", 15, 80),  # a gap inside a step is no gap between steps
        Busy("_lm_head_kernel", 75, 90),
        Busy("Memcpy DtoD", 92, 94),
        Busy("Memcpy DtoH", 93, 97),
        Busy("_apply_updates_kernel", 98, 99),
        Busy("_decode_inputs_kernel", 100, 110),
        Busy("_lm_head_kernel", 110, 190),
        Busy("_decode_inputs_kernel", 190, 200),
    ]
    assert idle_share(busy) == pytest.approx((2 + 1 + 1) / 190)
    assert idle_share(busy[::-1]) == idle_share(busy)
    assert idle_share(busy[:5]) != idle_share(busy[:5])  # one step: not measured


def test_bytes_and_operations_of_a_124m_step() -> None:
    config = config_of("124M")
    weights = 12 * 12 * 768**2 + 50257 * 768
    assert step_weight_bytes(config) == pytest.approx(2 * weights, rel=0.01)
    assert kv_bytes(config, 10) == 10 * 36864
    assert step_flops(config, 1, 0) == 2 * weights
    assert step_flops(config, 3, 100) == 6 * weights + 100 * 4 * 12 * 768


def test_rows_are_compared_at_each_change_of_tile() -> None:
    changes = tile_changes(768, 768, 4096, (9, 0))
    assert changes[0] == 1 and 17 in changes
    for at in changes[1:]:
        before, after = (gemm_tile(m, 768, 768, torch.bfloat16, (9, 0)) for m in (at - 1, at))
        splits = [is_split(m, 768, 768, t) for m, t in ((at - 1, before), (at, after))]
        assert before != after or splits[0] != splits[1]
