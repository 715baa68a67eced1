"""The whole command in one process: flags to model directory."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from server.training import cli
from server.training.errors import TrainingError

from .conftest import TINY


def run(out: Path, text_file: Path, *flags: str) -> int:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in vars(TINY).items()]
    words += [
        f"--data={text_file}",
        f"--valid={text_file}",
        f"--out={out}",
        "--device=cpu",
        "--threads=1",
    ]
    return cli.run(parser.parse_args([*words, *flags]))


def test_trains_exports_and_writes_an_honest_card(tmp_path: Path, text_file: Path) -> None:
    notes, credits = tmp_path / "data.md", tmp_path / "CREDITS.tsv"
    notes.write_text("Tales of our own.\n\n## Limits\n\nOnly foxes.\n\n## Training\n\nBy hand.\n")
    credits.write_text("a fox\n")
    flags = ("--steps=8", f"--data-card={notes}", f"--attach={credits}", "--title=Fox")
    assert run(tmp_path / "out", text_file, *flags) == 0
    model = tmp_path / "out" / "model"
    card = (model / "README.md").read_text()
    assert "# Fox" in card
    assert "| tokens trained | 1,024 (" in card
    assert "Tales of our own." in card
    assert card.index("By hand.") < card.index("Tales of our own.") < card.index("Only foxes.")
    assert "continuo train --data tiny.txt --valid tiny.txt --out OUT" in card
    assert "--steps 8 " in card
    assert "--threads 1" in card
    assert str(tmp_path) not in card
    assert (model / "CREDITS.tsv").read_text() == "a fox\n"
    with pytest.raises(TrainingError, match="already holds checkpoints: give --resume"):
        run(tmp_path / "out", text_file)


def test_export_only_repeats_the_export_of_the_last_checkpoint(
    tmp_path: Path, text_file: Path
) -> None:
    assert run(tmp_path, text_file, "--steps=4") == 0
    model = tmp_path / "model"
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    for path in model.iterdir():
        path.unlink()
    assert run(tmp_path, text_file, "--export-only", "--n-layer=5") == 0
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_the_grid_chooses_and_then_trains(
    tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("--grid", "lr=1e-6,1e-2", "vocab-size=280,300", "--grid-steps=10")
    assert run(tmp_path, text_file, *grid, "--steps=2") == 0
    trials = json.loads((tmp_path / "grid.json").read_text())["trials"]
    assert len(trials) == 4
    best = min(trials, key=lambda trial: trial["bits_per_byte"])["choice"]
    assert best["lr"] == 1e-2
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["vocab_size"] == best["vocab_size"]
    assert "bits/byte" in capsys.readouterr().out


def test_grid_only_trains_no_more(tmp_path: Path, text_file: Path) -> None:
    assert run(tmp_path, text_file, "--grid", "lr=1e-3,1e-2", "--grid-steps=2", "--grid-only") == 0
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--context=4096"], "context 4096 is larger than the data"),
        (["--vocab-size=9000"], "vocab_size 9000 is too large"),
        (["--n-head=5"], "n_embd 32 is not a multiple of n_head 5"),
        (["--valid=absent.txt"], "cannot read absent.txt: No such file or directory"),
        (["--data-card=absent.md"], "cannot read --data-card absent.md"),
        (["--attach=absent.tsv"], "cannot read --attach absent.tsv"),
        (["--lr=-1"], "lr must be positive"),
        (["--decay=2"], "decay is the share"),
        (["--steps=0"], "steps must be at least 1"),
        (["--eval-every=0"], "--eval-every and --save-every must"),
        (["--grid", "lr=1", "--grid-steps=0"], "steps must be at least 1"),
        (["--export-only"], "--export-only: no checkpoint in"),
        (["--tokenizer=absent.json"], "no tokenizer at absent.json"),
    ],
)
def test_faults_are_sentences_before_any_training(
    tmp_path: Path, text_file: Path, flags: list[str], sentence: str
) -> None:
    with pytest.raises(TrainingError, match=sentence):
        run(tmp_path / "out", text_file, *flags)
    assert not (tmp_path / "out").exists()
