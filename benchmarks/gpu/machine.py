"""The facts that figures hang on: GPU, driver, versions, commit. Imports torch."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.optional import missing

_PACKAGES = ("torch", "triton", "numpy", "transformers", "flashinfer-python", "pytest")


def facts(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {name: _version(name) for name in _PACKAGES},
        "missing": missing(),
        "commit": _commit(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "processors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mb": round(getattr(properties, "L2_cache_size", 0) / 1e6, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nvidia_smi": _nvidia_smi(),
        }
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _nvidia_smi() -> str:
    """Driver, clocks, power and temperature: only read, never set."""
    fields = "driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
    return _said(["nvidia-smi", f"--query-gpu={fields}", "--format=csv"])


def _commit() -> str:
    return _said(["git", "describe", "--always", "--dirty"])


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
