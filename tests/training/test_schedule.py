from __future__ import annotations

import pytest

from server.training.schedule import lr_scale


def test_warms_up_stays_and_decays() -> None:
    scales = [lr_scale(step, steps=100, warmup=10, decay=0.4) for step in range(100)]
    assert scales[0] == pytest.approx(0.1)
    assert scales[4] == pytest.approx(0.5)
    assert scales[9:60] == [1.0] * 51
    assert scales[60] == pytest.approx(40 / 41)
    assert scales[99] == pytest.approx(1 / 41)
    assert scales[60:] == sorted(scales[60:], reverse=True)


def test_more_steps_change_nothing_before_decay_begins() -> None:
    short = [lr_scale(step, 100, 10, 0.4) for step in range(60)]
    long = [lr_scale(step, 150, 10, 0.4) for step in range(60)]
    assert short == long


def test_neither_warmup_nor_decay_is_needed() -> None:
    assert [lr_scale(step, 5, 0, 0.0) for step in range(5)] == [1.0] * 5


def test_decay_over_all_steps_never_goes_below_zero() -> None:
    assert all(0.0 < lr_scale(step, 10, 0, 1.0) <= 1.0 for step in range(10))
