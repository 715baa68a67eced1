"""Packages that may be missing on the machine with the GPU, and what is left out without each."""

from __future__ import annotations

import importlib.util

_OPTIONAL = {
    "transformers": "its continuous batching",
    "flashinfer": "its decode attention",
    "matplotlib": "the plot",
    "pytest": "the tests",
    "hypothesis": "tests that use it",
    "numba": "tests against the CPU kernels",
    "safetensors": "tests that read a checkpoint",
    "tokenizers": "tests that make a model directory",
    "msgspec": "nothing: a stand-in serves, as no frame is sent",
}


def missing() -> dict[str, str]:
    """Packages that are not installed, and what is left out for it."""
    return {
        name: what for name, what in _OPTIONAL.items() if importlib.util.find_spec(name) is None
    }
