"""F01 to F06: weights. Whatever is wrong is found in the header, before anything is allocated for it."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.model.safetensors_file import MAX_HEADER_BYTES
from tests.hostile.files.conftest import Refuse, check_harmless
from tests.hostile.files.loader import Loaded, Loader
from tests.hostile.files.spoiling import (
    CANARY,
    edit_header,
    raw_header,
    raw_weights,
    weights_of,
    write,
    write_header,
)

WTE, LAST = "wte.weight", "wpe.weight"
Spoil = Callable[[Path], Any]


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def change(name: str, **fields: Any) -> Spoil:
    return edit_header(lambda header: header[name].update(fields))


def moved(name: str, by: tuple[int, int]) -> Spoil:
    def move(header: dict[str, Any]) -> None:
        begin, end = header[name]["data_offsets"]
        header[name]["data_offsets"] = [begin + by[0], end + by[1]]

    return edit_header(move)


def reverse(header: dict[str, Any]) -> None:
    header[WTE]["data_offsets"].reverse()


def crowd(num_tensors: int) -> bytes:
    """As many tensors as fit, all of them empty and well described."""
    each = ",".join(
        f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(num_tensors)
    )
    return b"{" + each.encode() + b"}"


STARTS: dict[str, tuple[Spoil, str]] = {
    "nothing": (raw_weights(b""), "truncated: 0 bytes"),
    "seven bytes": (raw_weights(b"\0" * 7), "truncated: 7 bytes"),
    "length 0": (raw_weights(bytes(64)), "header length is 0"),
    "length 2^63": (raw_header(b"{}", 1 << 63), "header length is 9223372036854775808"),
    "length 2^64 - 1": (raw_header(b"{}", (1 << 64) - 1), "header length"),
    "length over the file": (raw_header(b"{}", 1000), "truncated: the header ends at 1008"),
    "length 100 MB": (raw_header(b"{}", 100_000_001), "header length is 100000001"),
    "just over our limit": (raw_header(b"{}", MAX_HEADER_BYTES + 1), "header length"),
    "a list": (raw_header(b"[]"), "must hold one JSON object"),
    "no brace": (raw_header(b"wte!"), "not valid JSON"),
    "bad UTF-8": (raw_header(b'{"\xff\xfe": 1}'), "not valid JSON"),
    "UTF-16": (raw_header('{"a": 1}'.encode("utf-16")), "not valid JSON"),
    "deep": (raw_header(b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}"), "nested too deeply"),
    "deep objects": (raw_header(b'{"a":' * 30_000 + b"1" + b"}" * 30_000), "nested too deeply"),
    "many digits": (raw_header(b'{"a":' + b"9" * 100_000 + b"}"), "not valid JSON"),
    "NaN": (raw_header(b'{"a": NaN}'), "NaN is not a number"),
    "a name twice": (raw_header(b'{"wte.weight": 1, "wte.weight": 2}'), "appears twice"),
    "terminal codes": (raw_header(json.dumps({"\x1b[2J\n": 1}).encode()), r"'\x1b[2J\n'"),
    "half a surrogate": (raw_header(b'{"\\ud800": 1}'), r"'\ud800'"),
    "10^6 tensors": (
        lambda it: write_header(it, crowd(1_000_000), b""),
        "not a safetensors file of a GPT",
    ),
    "all tensors that fit": (
        lambda it: write_header(it, crowd(70_000), b""),
        "more than 100000 lists",
    ),
    "30,000 tensors": (lambda it: write_header(it, crowd(30_000), b""), "is not part of this GPT"),
    "a metadata bomb": (
        raw_header(b'{"__metadata__":[' + b"[]," * 1_300_000 + b"1]}"),
        "more than 100000 lists and objects",
    ),
}
TENSORS: dict[str, tuple[Spoil, str]] = {
    "reversed": (edit_header(reverse), "does not multiply out"),
    "negative": (change(WTE, data_offsets=[-4, 4]), "data_offsets that are not two sizes"),
    "2^63": (change(WTE, data_offsets=[0, 1 << 63]), "data_offsets that are not two sizes"),
    "2^64 in all": (change(WTE, data_offsets=[1 << 64, (1 << 64) + 4]), "not two sizes"),
    "floats": (change(WTE, data_offsets=[0.0, 4.0]), "not two sizes"),
    "infinite": (edit_header(lambda it: it[WTE].update(shape=[1e999])), "not valid JSON"),
    "three offsets": (change(WTE, data_offsets=[0, 1, 2]), "not two sizes"),
    "overlap": (moved(LAST, (-4, -4)), "overlaps the tensor before it"),
    "gap": (moved(LAST, (4, 4)), "leaves a gap before it"),
    "past the end": (
        edit_header(lambda it: it.update(zz=entry(offsets=it[WTE]["data_offsets"][1:] * 2))),
        "does not multiply out",
    ),
    "an empty one inside another": (
        edit_header(lambda it: it.update(zero=entry(shape=[0], offsets=[8, 8]))),
        "overlaps the tensor before it",
    ),
    "an empty one behind the end": (
        edit_header(lambda it: it.update(zero=entry(shape=[0], offsets=[1 << 40, 1 << 40]))),
        "leaves a gap before it",
    ),
    "a shape of 2^64": (change(WTE, shape=[1 << 32, 1 << 32]), "does not multiply out"),
    "a shape that wraps to itself": (
        edit_header(lambda it: it[WTE].update(shape=[*it[WTE]["shape"], (1 << 48) - 1, 1 << 16])),
        "does not multiply out",
    ),
    "a size over 64 bits": (change(WTE, shape=[1 << 64]), "not a list of sizes"),
    "negative sizes that multiply out": (
        edit_header(lambda it: it[WTE].update(shape=[-size for size in it[WTE]["shape"]])),
        "not a list of sizes",
    ),
    "truth for a size": (change(WTE, shape=[True, 32]), "not a list of sizes"),
    "many dimensions": (change(WTE, shape=[1] * 100_000), "not a list of sizes"),
    "unknown dtype": (change(WTE, dtype="F33"), "unknown dtype 'F33'"),
    "a dtype of half a megabyte": (change(WTE, dtype="F" * 500_000), "unknown dtype 'FFFF"),
    "dtype of integers": (change(WTE, dtype="I32"), "has dtype I32"),
    "a field more": (change(WTE, code="x"), "not described by"),
    "one missing": (edit_header(lambda it: it.update(other=it.pop(WTE))), "is not part of"),
    "another shape": (
        edit_header(lambda it: it[WTE].update(shape=it[WTE]["shape"][::-1])),
        "has shape [32, 320], not [320, 32]",
    ),
}


@pytest.mark.parametrize(("spoil", "why"), STARTS.values(), ids=STARTS)
def test_a_header_that_is_none(model_dir: Path, refuse: Refuse, spoil: Spoil, why: str) -> None:
    spoil(model_dir)
    refuse("model.safetensors", why)


@pytest.mark.parametrize(("spoil", "why"), TENSORS.values(), ids=TENSORS)
def test_a_tensor_that_is_none(model_dir: Path, refuse: Refuse, spoil: Spoil, why: str) -> None:
    spoil(model_dir)
    refuse("model.safetensors", why)


def test_a_tensor_less_and_one_more(model_dir: Path, refuse: Refuse) -> None:
    header, data = weights_of(model_dir)
    last = max(header, key=lambda name: header[name]["data_offsets"])
    begin, _ = header.pop(last)["data_offsets"]
    write_header(model_dir, json.dumps(header).encode(), data[:begin])
    refuse("model.safetensors", f"tensor {last!r} is missing")
    header, data = weights_of(model_dir)
    header["h.7.ln_1.weight"] = entry(offsets=[begin, begin + 4])
    write_header(model_dir, json.dumps(header).encode(), data + bytes(4))
    refuse("model.safetensors", "'h.7.ln_1.weight' is not part of this GPT")


class Payload:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.directory / CANARY}",)


def pickled(directory: Path) -> bytes:
    return pickle.dumps(Payload(directory))


def zipped(directory: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(directory))
    return buffer.getvalue()


@pytest.mark.parametrize("make", [pickled, zipped])
def test_a_pickle_under_a_false_name(
    model_dir: Path, refuse: Refuse, make: Callable[[Path], bytes]
) -> None:
    write(model_dir / "model.safetensors", make(model_dir))
    refuse("model.safetensors", "is a pickle")


def test_a_pickle_beside_the_weights_is_never_opened(
    loader: Loader, good: Loaded, model_dir: Path, refuse: Refuse
) -> None:
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin", "model.pkl"):
        write(model_dir / name, pickled(model_dir))
    loaded = loader.load(model_dir)
    assert loaded.error == "" and loaded.tokens == good.tokens
    check_harmless(loaded, good, model_dir)
    (model_dir / "model.safetensors").unlink()
    refuse("model.safetensors", "model.pkl is a pickle and is never opened")


@pytest.mark.parametrize(
    "bits", [b"\0\0\xc0\x7f", b"\0\0\xc0\xff", b"\0\0\x80\x7f", b"\0\0\x80\xff"]
)
def test_weights_that_are_not_finite_are_served_and_counted(
    loader: Loader, good: Loaded, model_dir: Path, bits: bytes
) -> None:
    header, data = weights_of(model_dir)
    spoilt = bytearray(data)
    for name in ("h.1.mlp.c_fc.weight", "wpe.weight"):
        end = header[name]["data_offsets"][1]  # the last position, which no test reaches
        spoilt[end - 4 : end] = bits
    write_header(model_dir, json.dumps(header).encode(), bytes(spoilt))
    loaded = loader.load(model_dir)
    assert loaded.error == ""
    assert loaded.num_not_finite == 2
    assert good.num_not_finite == 0
