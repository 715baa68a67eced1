"""The peers' own converters: python -m benchmarks.compare.peers.convert ctranslate2|gguf FOLDER OUT ..."""

from __future__ import annotations

import sys
from pathlib import Path


def _to_ctranslate2(folder: str, out: str) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(folder).convert(out, force=True)


def _to_gguf(folder: str, out: str, outtype: str, llama_cpp: str) -> None:
    """llama.cpp's convert_hf_to_gguf.py, told that an unknown vocabulary is split as GPT-2 splits."""
    sys.path.insert(0, llama_cpp)
    import convert_hf_to_gguf
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    sys.argv = ["convert_hf_to_gguf.py", folder, "--outfile", out, "--outtype", outtype]
    convert_hf_to_gguf.main()


def main() -> None:
    kind, folder, out, *rest = sys.argv[1:]
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    if kind == "ctranslate2":
        _to_ctranslate2(folder, out)
    else:
        _to_gguf(folder, out, *rest)


if __name__ == "__main__":
    main()
