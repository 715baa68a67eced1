"""A good directory to spoil, and the process that loads what came of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hostile.files.loader import MAX_CPU_S, MAX_GROWTH_MIB, Loaded, Loader
from tests.hostile.files.spoiling import CANARY, plant_code
from tests.tiny_model import write_tiny_model

MODEL_FILES = {
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
Refuse = Callable[..., Loaded]


@pytest.fixture(scope="session")
def loader() -> Iterator[Loader]:
    loader = Loader()
    yield loader
    loader.end()


@pytest.fixture(scope="session")
def good_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("good")
    write_tiny_model(directory, n_embd=32)
    return directory


@pytest.fixture(scope="session")
def good(loader: Loader, good_dir: Path) -> Loaded:
    """What loading a good directory comes to."""
    loaded = loader.load(good_dir)
    assert loaded.error == ""
    return loaded


@pytest.fixture
def model_dir(good_dir: Path, tmp_path: Path) -> Path:
    """A copy, by hard links: those are regular files, and served."""
    directory = Path(shutil.copytree(good_dir, tmp_path / "model", copy_function=os.link))
    plant_code(directory)
    return directory


@pytest.fixture
def refuse(loader: Loader, good: Loaded, model_dir: Path) -> Refuse:
    """Have `model_dir` loaded, which must end with one sentence that names `file` and says `why`."""

    def refuse(file: str, why: str, manifest: Path | str = "") -> Loaded:
        loaded = loader.load(model_dir, manifest)
        check_harmless(loaded, good, model_dir)
        assert why in loaded.error, loaded.error
        assert str(model_dir / file) in loaded.error or not file, loaded.error
        assert loaded.error.isprintable() and loaded.error.endswith("."), loaded.error
        assert len(loaded.error) < 1000 + 2 * len(str(model_dir)), "one line that can be read"
        assert loaded.cpu_s <= MAX_CPU_S
        assert loaded.grown_mib <= MAX_GROWTH_MIB
        return loaded

    return refuse


def check_harmless(loaded: Loaded, good: Loaded, directory: Path) -> None:
    """Nothing was imported or run that a good directory does not need, and no other file was opened."""
    assert not (directory / CANARY).exists()
    assert set(loaded.modules) <= set(good.modules)
    assert set(loaded.dangers) <= set(good.dangers)
    assert not any(str(directory) in danger for danger in loaded.dangers)
    assert {name for name in loaded.opened if not name.startswith("model-0")} <= MODEL_FILES
