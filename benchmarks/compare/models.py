"""The models: shapes, the bytes that a step reads of them, and each engine's own form of the same weights."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare.environment import LLAMA_CPP, Peers
from benchmarks.compare.vocabulary import write_tokenizer
from benchmarks.random_gpt2 import SHAPES, VOCAB_SIZE, write_random_gpt2

EMBEDDED = Path(__file__).parents[2] / "server" / "assets" / "model"
EMBEDDED_NAME = "embedded"
NAMES = ("124M", "774M", EMBEDDED_NAME)
BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "q8_0": 34 / 32, "bf16": 2.0}
_CONVERT_S = 900


@dataclass(frozen=True)
class Shape:
    n_layer: int
    n_embd: int
    vocab_size: int

    def weight_bytes(self, form: str) -> float:
        """Of all that one decode step reads: layers, last norm and head (tied), but no position table."""
        per_layer = 12 * self.n_embd**2 + 13 * self.n_embd
        weights = self.vocab_size * self.n_embd + self.n_layer * per_layer + 2 * self.n_embd
        return weights * BYTES_PER_WEIGHT[form]


def shape_of(name: str) -> Shape:
    if name == EMBEDDED_NAME:
        config = json.loads((EMBEDDED / "config.json").read_text())
        return Shape(config["n_layer"], config["n_embd"], config["vocab_size"])
    n_layer, _, n_embd = SHAPES[name]
    return Shape(n_layer, n_embd, VOCAB_SIZE)


class ModelStore:
    """Makes each form of each model once, in `folder`, and remembers which could not be made and why."""

    def __init__(self, folder: Path, peers: Peers) -> None:
        self._folder = folder
        self._peers = peers
        self._made: dict[tuple[str, str], tuple[Path | None, str]] = {}

    def get(self, name: str, form: str) -> tuple[Path | None, str]:
        """The path of a form: "hf", "ctranslate2", "gguf-bf16" or "gguf-q8_0"; or None and why not."""
        key = (name, form)
        if key not in self._made:
            self._made[key] = self._make(name, form)
        return self._made[key]

    def _make(self, name: str, form: str) -> tuple[Path | None, str]:
        folder = self._folder / name
        if form == "hf":
            return _write_checkpoint(name, folder / "hf"), ""
        source, _ = self.get(name, "hf")
        kind, _, outtype = form.partition("-")
        out = folder / (f"{outtype}.gguf" if outtype else kind)
        arguments = [kind, str(source), str(out), *([outtype, str(LLAMA_CPP)] if outtype else [])]
        command = [str(self._peers.python), "-m", "benchmarks.compare.peers.convert", *arguments]
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=_CONVERT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return None, f"could not be converted: {type(error).__name__}"
        if ended.returncode == 0 and out.exists():
            return out, ""
        last = ended.stderr.strip().splitlines()[-1:] or [f"status {ended.returncode}"]
        return None, f"could not be converted: {last[0][:140]}"


def _write_checkpoint(name: str, folder: Path) -> Path:
    """Without a generation_config.json that names an end token: peers would stop at it."""
    if name == EMBEDDED_NAME:
        ignored = shutil.ignore_patterns("*.md", "*.tsv", "generation_config.json")
        shutil.copytree(EMBEDDED, folder, ignore=ignored, dirs_exist_ok=True)
    else:
        write_random_gpt2(folder, name)
        write_tokenizer(EMBEDDED, folder, VOCAB_SIZE)
        config = json.loads((folder / "config.json").read_text())
        config |= {"n_ctx": config["n_positions"], "tie_word_embeddings": True}
        (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text('{"eos_token_id": -1, "bos_token_id": 0}')
    return folder
