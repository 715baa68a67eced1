from __future__ import annotations

import sys

import pytest

from server.training.progress import ProgressReporter


def report(steps: int) -> None:
    reporter = ProgressReporter(steps, tokens_per_step=100)
    reporter.start(0)
    for step in range(1, steps + 1):
        reporter.step(step, loss=2.0, lr=1e-3)
    reporter.note("a note")
    reporter.close()


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    report(45)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["20/45", "40/45", "45/45"]
    assert "loss 2.0000" in lines[0]
    assert "tokens/s" in lines[0]
    assert "min left" in lines[0]
    assert lines[-1] == "a note"


def test_a_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    report(45)
    shown = capsys.readouterr().err
    assert "45/45" in shown
    assert "loss 2.000" in shown
    assert "a note" in shown
