"""Ways to make a good model directory a bad one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

CANARY = "executed"
# Python files that nobody should import: each leaves a mark if it is run.
CODE_NAMES = (
    "modeling_gpt2.py", "configuration_gpt2.py", "tokenizer.py", "__init__.py", "conftest.py",
    "sitecustomize.py", "torch.py", "custom_generate/generate.py",
)  # fmt: skip
Edit = Callable[[dict[str, Any]], object]


def write(path: Path, data: bytes | str) -> None:
    """A new file: an old one may be a hard link to that of another test."""
    path.unlink(missing_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def plant_code(directory: Path) -> None:
    for name in CODE_NAMES:
        (directory / name).parent.mkdir(exist_ok=True)
        write(directory / name, f"open({str(directory / CANARY)!r}, 'w').close()\n")


def edit_json(path: Path, edit: Edit) -> None:
    value = json.loads(path.read_text())
    edit(value)
    write(path, json.dumps(value))


def set_config(**fields: Any) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory / "config.json", lambda it: it.update(fields))


def weights_of(directory: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the data behind it."""
    raw = (directory / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def write_header(directory: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    size = len(header) if length is None else length
    write(directory / "model.safetensors", size.to_bytes(8, "little") + header + data)


def edit_header(edit: Edit) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        header, data = weights_of(directory)
        edit(header)
        write_header(directory, json.dumps(header).encode(), data)

    return spoil


def raw_weights(raw: bytes) -> Callable[[Path], None]:
    return lambda directory: write(directory / "model.safetensors", raw)


def raw_header(header: bytes, length: int | None = None) -> Callable[[Path], None]:
    return lambda directory: write_header(directory, header, bytes(64), length)


def sha256sum(directory: Path, *names: str) -> str:
    """As the command prints it."""
    return "".join(
        f"{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}\n" for name in names
    )
