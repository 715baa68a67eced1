"""Three tiny tasks for lm-evaluation-harness, written to a folder: two of scoring, one of generating."""

from __future__ import annotations

import json
from pathlib import Path

CHOICES = "stories_choice"
GENERATION = "stories_generation"
ROLLING = "stories_rolling"

MAX_TOKENS = 24
UNTIL = ["\n", " and"]

# (context, choices, label): in some the model should not agree, so that no score is 0 or 1
QUESTIONS = [
    ("Once upon a time, there was a", [" little girl named Lily.", " tax on the deep sink."], 0),
    ("The dog ran to the park and", [" was the of of", " played with a big ball.", " two"], 1),
    ("Tom had a big red ball. He liked to", [" play with it.", " xylophone invoice."], 1),
    ("One day, a cat saw a bird in the", [" equation", " tree", " of the of it"], 1),
    ("Mom said, \"Let's go to the", [' spleen."', ' park."', ' Ökonomie — 日本語."'], 2),
    ("They were so happy because the", [" sun was shining.", " loud blue the he."], 0),
    ("Lily's café was naïve 🙂 and", [" she smiled.", " 🙂🙂🙂"], 0),
]
TEXTS = ["Once upon a time, there was a little dog.", "Ben saw a 🙂 in the café — it was naïve."]

_COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
target_delimiter: ""
"""
_CHOICES = """
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_target: "{{label}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
_GENERATION = """
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: %s, max_gen_toks: %d, do_sample: false, temperature: 0.0}
metric_list: [{metric: exact_match}]
"""
_ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{context}}"
metric_list: [{metric: bits_per_byte}]
"""


def write_tasks(folder: Path) -> None:
    questions = [
        {"context": context, "choices": choices, "label": label}
        for context, choices, label in QUESTIONS
    ]
    generation = _GENERATION % (json.dumps(UNTIL), MAX_TOKENS)
    _write(folder, CHOICES, _CHOICES, questions)
    _write(folder, GENERATION, generation, questions)
    _write(folder, ROLLING, _ROLLING, [{"context": text} for text in TEXTS])


def _write(folder: Path, name: str, task: str, documents: list[dict[str, object]]) -> None:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))
    (folder / f"{name}.yaml").write_text(f"task: {name}\n{_COMMON.format(file=file)}{task}")
