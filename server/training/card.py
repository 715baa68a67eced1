"""The model card: what a model was made of, by which command, how good it is, and text of its own,
unedited.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from server.training.checkpoint import Progress
from server.training.config import TrainConfig

SAMPLE_PROMPTS = (
    "Once upon a time there was",
    '"Where are you going?" asked the fox.',
    "The old woman opened the door, and",
    "",
)
SAMPLE_TOKENS = 220
SAMPLE_TEMPERATURE = 0.8
SAMPLE_SEED = 1

TEMPLATE = """\
---
library_name: transformers
pipeline_tag: text-generation
---

# {title}

A language model of the GPT-2 architecture, trained {beginning} by `continuo train`. Serve it
with `continuo serve --model DIR`, or load it with transformers' `AutoModelForCausalLM` and
`AutoTokenizer`.

| | |
|---|---|
| parameters | {parameters:,} (head tied to the token embedding) |
| layers, heads, width | {config.n_layer}, {config.n_head}, {config.n_embd} |
| context | {config.context} tokens |
| vocabulary | {config.vocab_size} tokens, byte-level BPE, GPT-2's splitting pattern |
| weights | {dtype}, safetensors |

## Figures

| | |
|---|---|
| held-out text | **{bits_per_byte:.4f} bits per byte** |
| its size | {valid_bytes:,} bytes, {valid_tokens:,} tokens |
{origin}| tokens trained | {trained_tokens:,} ({epochs:.2f} passes over {train_tokens:,}) |
| time | {wall_min:.0f} minutes on the clock, {cpu_min:.0f} CPU minutes, on {hardware} |

Bits per byte: the nats of all tokens of the held-out text, end-of-text tokens included, / ln 2 /
the UTF-8 bytes of its documents (separator lines not counted). Taken from the weights in this
directory, computed in fp32, with windows of {config.context} tokens every {stride}, each token
scored once; only the first window's tokens see fewer than {left_context} tokens before them.

During training (windows that do not overlap, hence a little higher):

{history}

## Training

```
{command}
```

{recipe}

{training_notes}

## Data and licences

{data_card}

## Limits

It has the knowledge of its training text and no other: it makes things up, loses its thread after
a few sentences, follows no instructions, and has had no safety training.
{limits}

## Samples

Unedited: drawn once from the weights in this directory, temperature {temperature}, no other filter,
at most {sample_tokens} tokens, seed {seed}. The prompt is in bold; an empty prompt starts a new
document.

{samples}
"""

RECIPE = "{optimizer}; {schedule}; cross-entropy; gradients clipped at norm 1; no dropout."
ORIGIN_ROW = (
    "| before this run | {origin.bits_per_byte:.4f} bits per byte: the weights of `{origin.name}` "
    "(SHA-256 of its file: `{origin.sha256}`); their training is not counted below |\n"
)
OPTIMIZER_NAMES = {
    "muon": "Muon (Jordan et al., 2024) for the hidden matrices, AdamW for all else",
    "adamw": "AdamW",
}
DEFAULT_DATA_CARD = "Not stated by whoever trained it (`--data-card`)."


@dataclass(frozen=True)
class CardFacts:
    title: str
    config: TrainConfig
    progress: Progress
    parameters: int
    dtype: str
    bits_per_byte: float
    stride: int
    valid_bytes: int
    valid_tokens: int
    train_tokens: int
    hardware: str
    command: str
    data_card: str | None
    samples: list[tuple[str, str]]  # (prompt, prompt and continuation)


def render_card(facts: CardFacts) -> str:
    config, progress = facts.config, facts.progress
    trained_tokens = progress.step * config.tokens_per_step
    notes = _split_notes(facts.data_card or DEFAULT_DATA_CARD)
    texts = {"data_card": notes[""], "samples": _format_samples(facts.samples)}
    origin = progress.origin
    card = TEMPLATE.format(
        **vars(facts) | texts,
        beginning="from the weights of another model" if origin else "from scratch",
        origin=ORIGIN_ROW.format(origin=origin) if origin else "",
        training_notes=notes.get("Training", ""),
        limits=notes.get("Limits", ""),
        trained_tokens=trained_tokens,
        epochs=trained_tokens / facts.train_tokens,
        wall_min=progress.wall_s / 60,
        cpu_min=progress.cpu_s / 60,
        left_context=config.context - facts.stride,
        history=_format_history(progress),
        recipe=RECIPE.format(
            optimizer=OPTIMIZER_NAMES[config.optimizer], schedule=_describe_schedule(config)
        ),
        temperature=SAMPLE_TEMPERATURE,
        sample_tokens=SAMPLE_TOKENS,
        seed=SAMPLE_SEED,
    )
    return re.sub(r"\n{3,}", "\n\n", card)  # a note that is absent leaves no gap


def _split_notes(text: str) -> dict[str, str]:
    """What stands before the first `## Heading` under "", each section under its heading."""
    pieces = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return {"": pieces[0].strip()} | {
        heading.strip(): body.strip()
        for heading, body in zip(pieces[1::2], pieces[2::2], strict=True)
    }


def _describe_schedule(config: TrainConfig) -> str:
    phases = ["linear warm-up"] if config.warmup else []
    phases += ["a constant rate"] if config.decay < 1.0 else []
    phases += ["linear decay to nearly 0"] if config.decay else []
    return ", then ".join(phases)


def _format_history(progress: Progress) -> str:
    rows = [f"| {step} | {value:.4f} |" for step, value in progress.history]
    return "\n".join(["| step | valid bits per byte |", "|---|---|", *rows])


def _format_samples(samples: list[tuple[str, str]]) -> str:
    pieces = []
    for number, (prompt, text) in enumerate(samples, start=1):
        quoted = f"**{prompt}**{text[len(prompt) :]}" if prompt else text
        pieces.append(
            f"### {number}\n\n" + "\n".join(f"> {line}".rstrip() for line in quoted.splitlines())
        )
    return "\n\n".join(pieces)


def training_command(config: TrainConfig, data: list[Path], valid: Path, flags: list[str]) -> str:
    """The command that repeats the run; files by name only, since folders are a matter of the
    machine.
    """
    words = [
        "continuo",
        "train",
        "--data",
        *(path.name for path in data),
        "--valid",
        valid.name,
        "--out",
        "OUT",
    ]
    for name, value in vars(config).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, *flags])
