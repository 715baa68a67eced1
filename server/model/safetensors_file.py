"""Our own strict reader of one safetensors file: nothing in the header is believed before it is checked.

    [ 8 bytes: header length | header: JSON | data: tensors one after the other, no gap, no overlap ]

Knows nothing of models. Tensors share the file's memory map; writing to one never reaches the file.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from server.errors import ModelError
from server.model.strict_json import parse_object

MAX_HEADER_BYTES = 16 << 20
_MAX_DIMS = 8
_MAX_ELEMENTS = 1 << 48  # far below 2**63 / 8 bytes: no product of ours can wrap

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
    """One open file whose header has been checked whole. Tensors keep the memory map alive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size < 8:
                    raise ModelError(f"{path} is truncated: {size} bytes.")
                # Copy-on-write: torch.frombuffer wants writable memory, the file stays as it is.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}.") from None
        self.entries, self._data_start = _read_header(path, self._map, size)

    def tensor(self, name: str) -> Tensor:
        """A tensor of fp32, fp16 or bf16 that shares the map."""
        entry = self.entries[name]
        dtype = _FLOAT_DTYPES.get(entry.dtype)
        if dtype is None:
            raise ModelError(
                f"{self.path}: tensor {name!r} has dtype {entry.dtype}; only F32, F16 and BF16 weights "
                "are supported."
            )
        count = math.prod(entry.shape)
        offset = self._data_start + entry.begin
        if offset % dtype.itemsize:  # allowed by the format; torch wants aligned storage
            raw = bytearray(self._map[offset : offset + count * dtype.itemsize])
            return torch.frombuffer(raw, dtype=dtype).view(entry.shape)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset).view(
            entry.shape
        )


def _read_header(path: Path, data: mmap.mmap, size: int) -> tuple[dict[str, Entry], int]:
    if data[:4].startswith(_PICKLE_STARTS):
        raise ModelError(
            f"{path} is a pickle (a PyTorch .bin or .pt file) under a false name; only safetensors "
            "are opened, because a pickle can run code."
        )
    (length,) = struct.unpack("<Q", data[:8])
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise ModelError(
            f"{path} is not a safetensors file: its header length is {length} (2 to {MAX_HEADER_BYTES})."
        )
    if 8 + length > size:
        raise ModelError(
            f"{path} is truncated: the header ends at {8 + length}, the file at {size}."
        )
    header = parse_object(data[8 : 8 + length], f"{path}: the header")
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, raw) for name, raw in header.items()}
    _check_tiling(path, entries, size - 8 - length)
    return entries, 8 + length


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
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
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
