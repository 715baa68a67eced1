"""What is decided before a process exists: the model directory, its name, the environment."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from server.api_keys import read_keys
from server.config import EngineConfig, ServeConfig
from server.errors import ConfigError
from server.model_manifest import read_manifest

_log = logging.getLogger(__name__)

_PACKAGE_DIR = Path(__file__).resolve().parent
_EMBEDDED_MODEL_DIR = _PACKAGE_DIR / "assets" / "model"
_EMBEDDED_MODEL_NAME = "continuo-stories"


def resolve_engine(config: EngineConfig) -> EngineConfig:
    """Fill in the model directory. Only what is cheap to check is checked here."""
    model_dir = Path(config.model).expanduser() if config.model else _EMBEDDED_MODEL_DIR
    if not model_dir.is_dir():
        raise ConfigError(
            f"There is no model directory {model_dir}. --model takes a directory that holds "
            "config.json, the weights as safetensors and the tokenizer files."
        )
    manifest = _absolute(config.model_manifest)
    if manifest:
        read_manifest(Path(manifest)).check_all_exist(model_dir)
    return replace(config, model=str(model_dir.resolve()), model_manifest=manifest)


def resolve_serve(config: ServeConfig) -> ServeConfig:
    """Fill in the model directory and the name that clients use for it; make paths absolute."""
    name = Path(config.engine.model).expanduser().resolve().name if config.engine.model else ""
    return replace(
        config,
        engine=resolve_engine(config.engine),
        served_model_name=config.served_model_name or name or _EMBEDDED_MODEL_NAME,
        api_key_file=_absolute(config.api_key_file),
        ssl_certfile=_absolute(config.ssl_certfile),
        ssl_keyfile=_absolute(config.ssl_keyfile),
    )


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path)) if path else ""


def check_doors(config: ServeConfig) -> None:
    """Raises ConfigError where the keys or the certificate could not be used."""
    if config.api_key_file:
        read_keys(config.api_key_file)
    if config.ssl_certfile:
        _check_certificate(config.ssl_certfile, config.ssl_keyfile)


def _check_certificate(certfile: str, keyfile: str) -> None:
    import ssl  # not for those who serve plain HTTP

    for flag, path in (("--ssl-certfile", certfile), ("--ssl-keyfile", keyfile)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise ConfigError(f"{flag} {path} cannot be read: {error.strerror}.") from None
    try:
        # a password of our own: OpenSSL would ask the terminal for it
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile, lambda: b"")
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        raise ConfigError(
            f"--ssl-certfile {certfile} and --ssl-keyfile {keyfile} are not a certificate and its "
            "unencrypted private key in PEM."
        ) from None


def check_kernels_are_ours() -> None:
    """Another distribution is called `kernels` too; with it in our place nothing would work."""
    spec = importlib.util.find_spec("kernels")
    if (
        spec is None
        or spec.origin is None
        or Path(spec.origin).parent.parent != _PACKAGE_DIR.parent
    ):
        where = spec.origin if spec is not None else "nowhere"
        raise ConfigError(
            f"The package `kernels` is found at {where}, which is not Continuo's. Another "
            "distribution of that name is in the way: pip uninstall kernels, then install "
            "continuo again."
        )


def child_environment(api_workers: int = 1) -> dict[str, str]:
    """The environment of the children. What the operator has set already is left as it is."""
    cache_dir = _writable_cache_dir()
    num_threads = str(engine_threads(available_cores(), api_workers))
    ours = {
        "OMP_NUM_THREADS": num_threads,
        "NUMBA_NUM_THREADS": num_threads,
        # Workers of torch's and numba's pools spin for some 0.3 ms, longer than the gaps within a step,
        # then sleep and leave the cores to others. A 124M model on two cores decoded 76 to 82 tokens/s
        # with 30000, 39 to 65 with 1000 (three interleaved runs each).
        "GOMP_SPINCOUNT": "30000",
        "NUMBA_CACHE_DIR": str(cache_dir / "numba"),
        "TRITON_CACHE_DIR": str(cache_dir / "triton"),
    }
    return {**ours, **os.environ}


def engine_threads(num_cores: int, api_workers: int) -> int:
    """An api worker beyond the first has a core to itself, as long as the engine keeps three of four."""
    return max(num_cores - (api_workers - 1), -(-3 * num_cores // 4))


def _writable_cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    cache_dir = Path(base) / "continuo"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        if not _is_safe(cache_dir):
            raise PermissionError(errno.EPERM, "others could write there")
        with tempfile.TemporaryFile(dir=cache_dir):
            return cache_dir
    except OSError as error:
        fallback = _private_dir(Path(tempfile.gettempdir()) / f"continuo-cache-{os.getuid()}")
        _log.warning(
            "cannot write %s (%s): compiled kernels go to %s", cache_dir, error.strerror, fallback
        )
        _take_along(cache_dir, fallback)
        return fallback


def _take_along(cache_dir: Path, fallback: Path) -> None:
    """What was compiled before, into an image with a read-only root say: half a minute's work."""
    with suppress(OSError, shutil.Error):
        if not any(fallback.iterdir()) and _is_safe(cache_dir):
            shutil.copytree(cache_dir, fallback, dirs_exist_ok=True)


def _is_safe(cache_dir: Path) -> bool:
    """Compiled code is run, and its index is a pickle: nobody else may have put it, or a directory, there."""
    path = cache_dir.resolve()
    if path.stat().st_mode & stat.S_IWOTH:
        return False
    return all(
        not above.stat().st_mode & stat.S_IWOTH or below.stat().st_uid in (0, os.getuid())
        for below, above in zip((path, *path.parents), path.parents, strict=False)
    )


def _private_dir(path: Path) -> Path:
    """Compiled code is run: a directory that another user could have made is not taken."""
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if status.st_uid == os.getuid() and stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077:
        return path
    return Path(tempfile.mkdtemp(prefix="continuo-cache-"))


def available_cores() -> int:
    """Cores this process may use: its affinity, and the CPU quota of its container if lower."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    if quota == "max":
        return cores
    return max(1, min(cores, round(int(quota) / int(period))))
