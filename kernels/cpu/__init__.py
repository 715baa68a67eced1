"""The CPU kernels: compiled by numba, cached on disk under a name that changes with their sources.

numba notices a change in the file of a cached function, but not in the files of the functions compiled
into it: without the name below, an upgrade would go on running old machine code.
"""

import hashlib
from pathlib import Path

import numba

_HERE = Path(__file__).parent


def sources_digest(directory: Path) -> str:
    """12 hex digits of the names and contents of the Python files in a directory."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.py")):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


_BASE = Path(numba.config.CACHE_DIR or _HERE / "__pycache__")  # type: ignore[attr-defined]
numba.config.CACHE_DIR = str(_BASE / f"kernels-{sources_digest(_HERE)}")  # type: ignore[attr-defined]
