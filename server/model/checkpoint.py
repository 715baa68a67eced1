"""A model directory's weights, checked whole before any is used. Knows names and layouts, no arithmetic.

Linear weights come out as [out, in] views whatever the file holds: Hugging Face's Conv1D stores
[in, out], nanoGPT's nn.Linear [out, in]. Which one it is follows from `config.layout` alone, never
from a shape, since a square matrix has the same shape both ways.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from server.errors import ModelError
from server.model.config import GPTConfig
from server.model.safetensors_file import MAX_HEADER_BYTES, SafetensorsFile
from server.model.strict_json import parse_object
from server.model_files import ModelFiles, as_model_files

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_INDEX_BYTES = 4 << 20
MAX_SHARDS = 256  # each is an open file
_PREFIXES = ("_orig_mod.", "transformer.")
_MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@dataclass(frozen=True, slots=True)
class LayerNormWeights:
    weight: Tensor  # [n_embd]
    bias: Tensor  # [n_embd]; zeros where the checkpoint has none


@dataclass(frozen=True, slots=True)
class LinearWeights:
    weight: Tensor  # [out, in], maybe a transposed view
    bias: Tensor  # [out]; zeros where the checkpoint has none


@dataclass(frozen=True, slots=True)
class LayerWeights:
    ln_1: LayerNormWeights
    c_attn: LinearWeights
    attn_c_proj: LinearWeights
    ln_2: LayerNormWeights
    c_fc: LinearWeights
    mlp_c_proj: LinearWeights


@dataclass(frozen=True, slots=True)
class GPTWeights:
    """Every tensor of a GPT in the checkpoint's own dtypes. `lm_head is wte` when the head is tied."""

    wte: Tensor  # [vocab_size, n_embd]
    wpe: Tensor  # [n_positions, n_embd]
    layers: Sequence[LayerWeights]  # each is read when it is taken
    ln_f: LayerNormWeights
    lm_head: Tensor  # [vocab_size, n_embd]


class Checkpoint:
    """All the files of a directory's weights, open and checked: names, shapes, dtypes, the manifest."""

    def __init__(self, directory: ModelFiles | str | Path, config: GPTConfig) -> None:
        """Raises ModelError. No weight has been read yet, unless there is a manifest."""
        self._config = config
        self._shards = _open_files(as_model_files(directory))
        self._stored = _Stored(self._shards)
        self._stored.check(_expected_shapes(config), config)

    def weights(self) -> GPTWeights:
        """The layers' are read as they are taken, so that they need not all be there beside packed ones."""
        return _assemble(self._stored, self._config)

    def not_finite(self) -> list[str]:
        """Names of tensors read so far that hold a NaN or an infinity."""
        return [name for shard in self._shards for name in shard.not_finite]


def load_weights(directory: ModelFiles | str | Path, config: GPTConfig) -> GPTWeights:
    """From `model.safetensors` or the shards of its index. Raises ModelError, also as layers are taken."""
    return Checkpoint(directory, config).weights()


def _open_files(files: ModelFiles) -> list[SafetensorsFile]:
    if files.has(WEIGHTS_FILE):
        return [SafetensorsFile(files, WEIGHTS_FILE)]
    if files.has(INDEX_FILE):
        return _open_shards(files)
    pickles = files.names(*_PICKLE_SUFFIXES)
    hint = f" ({pickles[0]} is a pickle and is never opened: convert it)" if pickles else ""
    raise ModelError(f"{files.directory / WEIGHTS_FILE} is missing, and so is {INDEX_FILE}{hint}.")


def weight_file_names(files: ModelFiles) -> list[str]:
    """Of the files that weights are read from, the index included. Raises ModelError."""
    if files.has(WEIGHTS_FILE) or not files.has(INDEX_FILE):
        return [WEIGHTS_FILE]
    return [INDEX_FILE, *sorted(set(_weight_map(files).values()))]


def _weight_map(files: ModelFiles) -> dict[str, str]:
    """The name of the file of each tensor."""
    index = files.directory / INDEX_FILE
    weight_map = parse_object(files.read(INDEX_FILE, MAX_INDEX_BYTES), str(index)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: weight_map must name the file of every tensor.")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w][\w.-]*\.safetensors", name):
            raise ModelError(f"{index}: tensor {tensor[:200]!r} lies in {str(name)[:80]!r}, which is not "
                             "the name of a safetensors file in this directory.")  # fmt: skip
    if len(set(weight_map.values())) > MAX_SHARDS:
        raise ModelError(f"{index} names more than {MAX_SHARDS} files.")
    return weight_map


def _open_shards(files: ModelFiles) -> list[SafetensorsFile]:
    index = files.directory / INDEX_FILE
    weight_map = _weight_map(files)
    shards: dict[str, SafetensorsFile] = {}
    for tensor, name in weight_map.items():
        if name not in shards:
            shards[name] = SafetensorsFile(files, name)
            if sum(shard.header_bytes for shard in shards.values()) > MAX_HEADER_BYTES:
                raise ModelError(
                    f"{index}: the headers of its files have over {MAX_HEADER_BYTES} bytes."
                )
        if tensor not in shards[name].entries:
            raise ModelError(
                f"{files.directory / name}: tensor {tensor[:200]!r} of {INDEX_FILE} is missing."
            )
    for name, shard in shards.items():
        for tensor in shard.entries:
            if weight_map.get(tensor) != name:
                raise ModelError(
                    f"{files.directory / name}: tensor {tensor[:200]!r} is not in {INDEX_FILE}."
                )
    return list(shards.values())


class _Stored:
    """The tensors of all files under their plain names: `h.0.ln_1.weight`, `lm_head.weight`."""

    def __init__(self, files: list[SafetensorsFile]) -> None:
        self._files = files
        self._at: dict[str, tuple[SafetensorsFile, str]] = {}
        for file in files:
            for stored_name, entry in file.entries.items():
                name = _plain_name(stored_name)
                is_mask = _MASK_BUFFER.fullmatch(name) and (len(entry.shape) in (0, 4))
                if is_mask:
                    continue
                if name in self._at:
                    raise ModelError(f"{file.path}: tensor {stored_name[:200]!r} appears twice.")
                self._at[name] = (file, stored_name)

    def __contains__(self, name: str) -> bool:
        return name in self._at

    def check(self, expected: dict[str, tuple[int, ...]], config: GPTConfig) -> None:
        for name, (file, stored_name) in self._at.items():
            where = f"{file.path}: tensor {stored_name[:200]!r}"
            if name not in expected:
                raise ModelError(f"{where} is not part of this GPT ({config.layout} layout).")
            shape = file.entries[stored_name].shape
            if shape != expected[name]:
                raise ModelError(f"{where} has shape {list(shape)}, not {list(expected[name])}.")
            file.check_dtype(stored_name)
        for name in expected:
            is_optional = name == "lm_head.weight" and config.tie_word_embeddings
            if name not in self._at and not is_optional:
                raise ModelError(f"{self._files[0].path}: tensor {name!r} is missing.")

    def tensor(self, name: str) -> Tensor:
        file, stored_name = self._at[name]
        return file.tensor(stored_name)


def _plain_name(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _expected_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    width, inner = config.n_embd, config.n_inner
    out_in = dict(
        zip(
            _LINEARS,
            ((3 * width, width), (width, width), (inner, width), (width, inner)),
            strict=True,
        )
    )
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config.vocab_size, width),
        "wpe.weight": (config.n_positions, width),
        "lm_head.weight": (config.vocab_size, width),
    }
    norms = ["ln_f"]
    for layer in range(config.n_layer):
        norms += [f"h.{layer}.ln_1", f"h.{layer}.ln_2"]
        for linear, (n_out, n_in) in out_in.items():
            is_conv = config.layout == "huggingface"
            shapes[f"h.{layer}.{linear}.weight"] = (n_in, n_out) if is_conv else (n_out, n_in)
            shapes[f"h.{layer}.{linear}.bias"] = (n_out,)
    for norm in norms:
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (width,)
    if not config.has_bias:
        shapes = {name: shape for name, shape in shapes.items() if not name.endswith(".bias")}
    return shapes


def _assemble(stored: _Stored, config: GPTConfig) -> GPTWeights:
    def bias(name: str, size: int) -> Tensor:
        return stored.tensor(f"{name}.bias") if config.has_bias else torch.zeros(size)

    def norm(name: str) -> LayerNormWeights:
        return LayerNormWeights(stored.tensor(f"{name}.weight"), bias(name, config.n_embd))

    def linear(name: str) -> LinearWeights:
        weight = stored.tensor(f"{name}.weight")
        weight = weight.t() if config.layout == "huggingface" else weight
        return LinearWeights(weight, bias(name, weight.shape[0]))

    def layer(at: str) -> LayerWeights:
        c_attn, attn_c_proj, c_fc, mlp_c_proj = (linear(f"{at}.{name}") for name in _LINEARS)
        return LayerWeights(
            norm(f"{at}.ln_1"), c_attn, attn_c_proj, norm(f"{at}.ln_2"), c_fc, mlp_c_proj
        )

    wte = stored.tensor("wte.weight")
    lm_head = stored.tensor("lm_head.weight") if "lm_head.weight" in stored else wte
    return GPTWeights(
        wte=wte,
        wpe=stored.tensor("wpe.weight"),
        layers=_Layers(config.n_layer, lambda index: layer(f"h.{index}")),
        ln_f=norm("ln_f"),
        lm_head=wte if torch.equal(lm_head, wte) else lm_head,
    )


class _Layers(Sequence[LayerWeights]):
    """Going through them reads one ahead, while the one before is packed: two are in memory at most."""

    def __init__(self, num_layers: int, read: Callable[[int], LayerWeights]) -> None:
        self._indices = range(num_layers)
        self._read = read

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> LayerWeights: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LayerWeights]: ...
    def __getitem__(self, index: int | slice) -> LayerWeights | Sequence[LayerWeights]:
        if isinstance(index, slice):
            return [self._read(one) for one in self._indices[index]]
        return self._read(self._indices[index])

    def __iter__(self) -> Iterator[LayerWeights]:
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self._read, 0)
            for index in self._indices:
                layer = ahead.result()
                if index + 1 < len(self):
                    ahead = pool.submit(self._read, index + 1)
                yield layer
                del layer
