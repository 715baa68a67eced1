"""What is decided before a process exists."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.config import EngineConfig, ServeConfig
from server.errors import ConfigError
from server.startup import available_cores, child_environment, resolve_engine, resolve_serve
from tests.serving import ROOT


def test_without_flags_the_embedded_model_is_served() -> None:
    config = resolve_serve(ServeConfig())
    assert config.served_model_name == "continuo-stories"
    assert Path(config.engine.model).is_dir()


def test_a_model_is_named_after_its_directory_unless_told_otherwise(tmp_path: Path) -> None:
    engine = EngineConfig(model=str(tmp_path))
    assert resolve_serve(ServeConfig(engine=engine)).served_model_name == tmp_path.name
    named = resolve_serve(ServeConfig(engine=engine, served_model_name="gpt2"))
    assert named.served_model_name == "gpt2"


def test_a_relative_model_directory_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_engine(EngineConfig(model="model")).model == str(tmp_path / "model")


def test_a_file_is_no_model_directory(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ConfigError, match="no model directory"):
        resolve_engine(EngineConfig(model=str(file)))


def test_what_the_operator_has_set_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NUMBA_CACHE_DIR", "TRITON_CACHE_DIR", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    env = child_environment()
    assert env["OMP_NUM_THREADS"] == "77"
    assert env["NUMBA_CACHE_DIR"] == str(tmp_path / "continuo" / "numba")


def test_an_unwritable_cache_directory_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    cache_dir = Path(child_environment()["NUMBA_CACHE_DIR"])
    assert cache_dir.is_relative_to(tmp_path / f"continuo-cache-{os.getuid()}")
    assert "cannot write" in caplog.text


def test_what_was_compiled_into_an_unwritable_directory_is_taken_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Read-only file system")

    cache = tmp_path / "cache" / "continuo"
    (cache / "numba").mkdir(parents=True)
    (cache / "numba" / "kernel.nbi").write_bytes(b"compiled")
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    cache.chmod(0o777)  # somebody else may have put it there
    assert list(Path(child_environment()["NUMBA_CACHE_DIR"]).parent.iterdir()) == []
    cache.chmod(0o755)
    taken = Path(child_environment()["NUMBA_CACHE_DIR"])
    assert taken.is_relative_to(tmp_path / "shared")
    assert (taken / "kernel.nbi").read_bytes() == b"compiled"


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a directory to another user")
@pytest.mark.parametrize("is_writable", [True, False])
def test_a_cache_that_another_user_could_have_made_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_writable: bool
) -> None:
    """As with HOME=/tmp. What is compiled is run, so whoever can write it there runs code as this user."""
    base = tmp_path / "shared"
    base.mkdir()
    base.chmod(0o1777)
    cache = base / "continuo"
    (cache / "numba").mkdir(parents=True)
    (cache / "numba" / "kernel.nbi").write_bytes(b"theirs")
    os.chown(cache, 12345, 12345)
    cache.chmod(0o777 if is_writable else 0o755)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(base))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    taken = Path(child_environment()["NUMBA_CACHE_DIR"])
    assert taken.is_relative_to(tmp_path / f"continuo-cache-{os.getuid()}")
    assert not (taken / "kernel.nbi").exists()
    os.chown(cache, os.getuid(), -1)
    cache.chmod(0o755)
    assert Path(child_environment()["NUMBA_CACHE_DIR"]) == cache / "numba"


def test_at_least_one_core_and_no_more_than_the_affinity() -> None:
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))


def test_another_package_called_kernels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    code = "import sys; from server.cli import main; sys.exit(main(['serve', '--port', '0']))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2
    assert f"{tmp_path}/kernels" in result.stderr
    assert "Traceback" not in result.stderr
