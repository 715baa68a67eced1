"""Our own strict reader of one safetensors file: nothing in the header is believed before it is checked.

    [ 8 bytes: header length | header: JSON | data: tensors one after the other, no gap, no overlap ]

Knows nothing of models. Each tensor is read when it is asked for, into memory of its own: the file may be
changed or cut afterwards, and the weights are never in memory as a whole twice.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from server.errors import ModelError
from server.model.not_finite import has_not_finite
from server.model.strict_json import parse_object
from server.model_files import ModelFile, ModelFiles

# That of 1,024 layers has 1.5 MB.
MAX_HEADER_BYTES = 4 << 20
_MAX_DIMS = 8
_MAX_ELEMENTS = 1 << 48  # far below 2**63 / 8 bytes: no product of ours can wrap
_CHUNK_BYTES = 1 << 18

_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_FLOAT_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor as the header describes it; offsets count from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """One file whose header has been checked whole, and its content against the manifest, if there is one.

    `not_finite`: names of the tensors read so far that hold a NaN or an infinity.
    """

    def __init__(self, files: ModelFiles, name: str) -> None:
        """Raises ModelError."""
        self.path = files.directory / name
        self._file = files.open(name)
        header = _header_bytes(self._file)
        self.entries = _read_header(self.path, header, self._file.size)
        self.not_finite: list[str] = []
        self.header_bytes = len(header)
        self._data_start = 8 + len(header)
        self._digests: dict[str, bytes] = {}
        if files.has_manifest:
            self._match(files, header)

    def check_dtype(self, name: str) -> torch.dtype:
        """Raises ModelError unless it is one that weights have."""
        dtype = _FLOAT_DTYPES.get(self.entries[name].dtype)
        if dtype is None:
            raise ModelError(
                f"{self.path}: tensor {name[:200]!r} has dtype {self.entries[name].dtype}; only F32, F16 "
                "and BF16 weights are supported."
            )
        return dtype

    def tensor(self, name: str) -> Tensor:
        """A tensor of fp32, fp16 or bf16, which the caller owns."""
        entry, dtype = self.entries[name], self.check_dtype(name)
        tensor = torch.empty(entry.shape, dtype=dtype)
        data = tensor.flatten().view(torch.uint8).numpy()
        is_finite, start = True, self._data_start + entry.begin
        for at in range(0, len(data), _CHUNK_BYTES):
            piece = data[at : at + _CHUNK_BYTES]
            self._file.read_into(piece.data, start + at)
            is_finite = is_finite and not has_not_finite(piece, dtype)  # while it is in the cache
        if self._digests and hashlib.sha256(data.data).digest() != self._digests[name]:
            raise ModelError(f"{self.path} was changed while it was being read: start again.")
        if not is_finite:
            self.not_finite.append(name)
        return tensor

    def _match(self, files: ModelFiles, header: bytes) -> None:
        """Compare with the manifest, and keep a digest of each tensor: what is read later is what matched."""
        whole = hashlib.sha256(len(header).to_bytes(8, "little") + header)
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        for name, entry in sorted(self.entries.items(), key=lambda item: _place(item[1])):
            part = hashlib.sha256()
            for offset in range(entry.begin, entry.end, _CHUNK_BYTES):
                piece = buffer[: entry.end - offset]
                self._file.read_into(piece, self._data_start + offset)
                whole.update(piece)
                part.update(piece)
            self._digests[name] = part.digest()
        files.check(self.path.name, whole.hexdigest())


def _place(entry: Entry) -> tuple[int, int]:
    return entry.begin, entry.end


def _header_bytes(file: ModelFile) -> bytes:
    if file.size < 8:
        raise ModelError(f"{file.path} is truncated: {file.size} bytes.")
    start = file.read(0, 8)
    if start.startswith(_PICKLE_STARTS):
        raise ModelError(
            f"{file.path} is a pickle (a PyTorch .bin or .pt file) under a false name; only safetensors "
            "are opened, because a pickle can run code."
        )
    length = int.from_bytes(start, "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise ModelError(
            f"{file.path} is not a safetensors file of a GPT: its header length is {length} "
            f"(2 to {MAX_HEADER_BYTES})."
        )
    if 8 + length > file.size:
        raise ModelError(
            f"{file.path} is truncated: the header ends at {8 + length}, the file at {file.size}."
        )
    return file.read(8, length)


def _read_header(path: Path, raw: bytes, size: int) -> dict[str, Entry]:
    header = parse_object(raw, f"{path}: the header")
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, raw) for name, raw in header.items()}
    _check_tiling(path, entries, size - 8 - len(raw))
    return entries


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_ELEMENTS


def _entry(path: Path, name: str, raw: Any) -> Entry:
    where = f"{path}: tensor {name[:200]!r}"
    if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
        raise ModelError(f"{where} is not described by dtype, shape and data_offsets.")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ModelError(f"{where} has the unknown dtype {str(dtype)[:40]!r}.")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMS or not all(map(_is_size, shape)):
        raise ModelError(f"{where} has a shape that is not a list of sizes: {str(shape)[:60]}.")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise ModelError(f"{where} has data_offsets that are not two sizes: {str(offsets)[:60]}.")
    num_bytes = math.prod(shape) * _ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != num_bytes:
        raise ModelError(
            f"{where} does not multiply out: {dtype} {shape} takes {num_bytes} bytes, its data_offsets "
            f"span {offsets[1] - offsets[0]}."
        )
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


def _check_tiling(path: Path, entries: dict[str, Entry], data_bytes: int) -> None:
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: _place(item[1])):
        if entry.begin != at:
            kind = "overlaps the tensor before it" if entry.begin < at else "leaves a gap before it"
            raise ModelError(
                f"{path}: tensor {name[:200]!r} {kind} (offset {entry.begin}, not {at})."
            )
        at = entry.end
    if at > data_bytes:
        raise ModelError(
            f"{path} is truncated: the tensors take {at} bytes, it holds {data_bytes}."
        )
    if at < data_bytes:
        raise ModelError(f"{path} has {data_bytes - at} bytes after its last tensor.")
