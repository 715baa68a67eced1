"""What all tests share: the environment that the supervisor gives its children, and a tiny model."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from server.startup import child_environment

# Before anything imports torch or numba: compiled kernels come from the cache that serving uses.
os.environ.update(child_environment())

# Before anything imports triton: without a GPU its kernels run in its interpreter.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# Where Triton has no release (arm64), so has the GPU path.
if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["kernels/gpu/*", "runner/gpu/*", "benchmarks/*"]


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_model import write_tiny_model

    directory = tmp_path_factory.mktemp("model") / "tiny-gpt"
    directory.mkdir()
    write_tiny_model(directory)
    return directory
