"""Encoding and decoding, with the `tokenizers` library as the oracle."""

from __future__ import annotations

import codecs
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Oracle
from tokenizers import decoders, models, pre_tokenizers, trainers

import server
from server.tokenizer import StreamDecoder, Tokenizer, load_tokenizer

END_OF_TEXT = "<|endoftext|>"
TEXTS = [
    "The tale of the old well, and of what they'd found: 42 coins, don't you know?",
    "  two  spaces\n\n\tand tabs  \r\n trailing   ",
    "Ünïcödé, ελληνικά, русский, 日本語, العربية, 👩‍👩‍👧 and ½ of ٣",
    "'S 'S 'll'VE x's aaaaaaaaaaaaaaaa 1234567 ____ <|endoftext|> <|endo",
    "",
    " ",
    "\u00a0\u2003\u3000x\u0085y\u200b",
]


def byte_level_oracle(model: models.BPE) -> Oracle:
    oracle = Oracle(model)
    oracle.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    oracle.decoder = decoders.ByteLevel()
    return oracle


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """Its special token has id 0, so ids and merge order differ."""
    oracle = byte_level_oracle(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    oracle.train_from_iterator(TEXTS * 3 + [Path(__file__).read_text()], trainer)
    return oracle


@pytest.fixture(scope="session")
def tokenizer(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("model")
    oracle.save(str(directory / "tokenizer.json"))
    return load_tokenizer(directory)


def oracle_ids(oracle: Oracle, text: str) -> list[int]:
    """With the special token's spelling as text: the library can only be told by removing it."""
    pieces = oracle.pre_tokenizer.pre_tokenize_str(text)
    return [token.id for piece, _ in pieces for token in oracle.model.tokenize(piece)]


@given(st.one_of(st.text(), st.sampled_from(TEXTS), st.text(alphabet="ab '\n1é<|")))
@settings(max_examples=300, deadline=None)
def test_encode_equals_tokenizers_and_decode_inverts_it(
    oracle: Oracle, tokenizer: Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert ids == oracle_ids(oracle, text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.are_tokens(ids)


def test_every_character_is_split_as_the_oracle_splits_it(
    oracle: Oracle, tokenizer: Tokenizer
) -> None:
    """In batches: a letter, a digit, a space and another sign on either side of each."""
    chars = [chr(i) for i in range(0x30000) if not 0xD800 <= i < 0xE000]
    for start in range(0, len(chars), 2000):
        text = "".join(f"a{c}1{c} {c}!{c}{c}" for c in chars[start : start + 2000])
        assert tokenizer.encode(text) == oracle_ids(oracle, text)


def test_ids_are_those_of_the_file(oracle: Oracle, tokenizer: Tokenizer) -> None:
    assert tokenizer.num_tokens == 600
    assert tokenizer.special_tokens == {END_OF_TEXT: 0}
    assert tokenizer.eos_token_id == 0
    assert tokenizer.token_bytes(0) == END_OF_TEXT.encode()
    assert not tokenizer.is_token(600)
    assert not tokenizer.is_token(-1)
    assert not tokenizer.are_tokens([5, 600])


def test_text_that_spells_a_special_token_is_text(tokenizer: Tokenizer) -> None:
    text = f"end{END_OF_TEXT}of"
    assert 0 not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert list(tokenizer.encode_packed(text)) == tokenizer.encode(text)


@pytest.mark.parametrize("seed", range(40))
def test_any_list_of_merges_encodes_as_the_oracle_does(seed: int, tmp_path: Path) -> None:
    """Random merges make tokens that their own bytes never reach, and one token by two pairs."""
    rng = random.Random(seed)
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: i for i, name in enumerate(names)}
    merges: list[tuple[str, str]] = []
    usable = ["a", "b", "c"]
    for _ in range(40):
        pair = (rng.choice(usable), rng.choice(usable))
        if pair in merges or len("".join(pair)) > 12:
            continue
        merges.append(pair)
        vocab.setdefault("".join(pair), len(vocab))
        usable.append("".join(pair))
    oracle = byte_level_oracle(models.BPE(vocab=vocab, merges=merges))
    oracle.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    for length in [*range(1, 25)] * 8 + [150, 600]:
        text = "".join(rng.choices("abc", k=length))
        assert tokenizer.encode(text) == oracle.encode(text).ids


def bytes_tokenizer(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """Single-byte tokens, so that any bytes, also invalid ones, can be fed."""
    by_byte = {tokenizer.token_bytes(i): i for i in range(1, tokenizer.num_tokens)}
    return [by_byte[bytes([byte])] for byte in data]


utf8_pieces = st.lists(
    st.one_of(
        st.text(max_size=3).map(str.encode),
        st.binary(max_size=3),
        st.sampled_from(["é", "日", "👩", "\ufffd"]).map(lambda c: c.encode()[:-1]),
        st.sampled_from([b"\xed", b"\xed\xa0", b"\xed\xbf\xbf", b"\xf4\x90", b"\xe0\x80"]),
    )
).map(b"".join)


@given(utf8_pieces, st.data())
@settings(max_examples=300, deadline=None)
def test_joined_deltas_equal_the_whole_text(
    tokenizer: Tokenizer, data: bytes, source: st.DataObject
) -> None:
    ids = bytes_tokenizer(tokenizer, data)
    for _ in range(source.draw(st.integers(0, 3))):
        ids.insert(source.draw(st.integers(0, len(ids))), 0)  # a special token has no text
    decoder = StreamDecoder(tokenizer)
    deltas = [decoder.feed(i) for i in ids]
    assert decoder.pending or decoder.flush() == ""
    assert "".join(deltas) + decoder.flush() == data.decode("utf-8", "replace")
    assert tokenizer.decode(ids) == data.decode("utf-8", "replace")


def chars_before_bytes(data: bytes) -> list[int]:
    """Per byte: how many characters of the whole text stand before that byte's own."""
    error_ends: dict[int, int] = {}

    def note(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        error_ends[error.start] = error.end
        return "\ufffd", error.end

    codecs.register_error("note", note)
    data.decode("utf-8", "note")
    starts: list[int] = []
    position = num_chars = 0
    while position < len(data):
        first = data[position]
        length = 1 + (first >= 0xC0) + (first >= 0xE0) + (first >= 0xF0)
        end = error_ends.get(position, position + length)
        starts += [num_chars] * (end - position)
        position, num_chars = end, num_chars + 1
    return starts


@given(utf8_pieces)
@settings(max_examples=500, deadline=None)
def test_a_token_knows_where_its_character_stands(tokenizer: Tokenizer, data: bytes) -> None:
    decoder = StreamDecoder(tokenizer)
    num_chars = 0
    places: list[int] = []
    for token_id in bytes_tokenizer(tokenizer, data):
        places.append(num_chars + decoder.num_chars_before(token_id))
        num_chars += len(decoder.feed(token_id))
    assert places == chars_before_bytes(data)


def test_never_half_a_character(tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(tokenizer)
    ids = bytes_tokenizer(tokenizer, "a日b".encode())
    assert [decoder.feed(i) for i in ids] == ["a", "", "", "日", "b"]


def test_a_directory_with_vocab_and_merges_gives_the_same(
    oracle: Oracle, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    oracle.model.save(str(tmp_path))
    from_files = load_tokenizer(tmp_path)
    assert from_files.special_tokens == {END_OF_TEXT: 0}
    for text in TEXTS:
        assert from_files.encode(text) == tokenizer.encode(text)


def test_a_tiktoken_file_gives_the_same_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    import base64

    raws = [tokenizer.token_bytes(i) for i in range(1, 600)]
    lines = (b"%s %d\n" % (base64.b64encode(raw), rank) for rank, raw in enumerate(raws))
    (tmp_path / "gpt2.tiktoken").write_bytes(b"".join(lines))
    from_file = load_tokenizer(tmp_path)
    assert from_file.eos_token_id == 599
    for text in TEXTS:
        assert from_file.encode(text) == [i - 1 for i in tokenizer.encode(text)]


def test_special_tokens_of_the_settings_files_are_known(oracle: Oracle, tmp_path: Path) -> None:
    oracle.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7, "bos_token_id": 0}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (7, 0)


def test_torch_is_not_imported() -> None:
    code = "import server.tokenizer, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def embedded() -> tuple[Oracle, Tokenizer]:
    directory = Path(server.__file__).parent / "assets" / "model"
    return Oracle.from_file(str(directory / "tokenizer.json")), load_tokenizer(directory)


words = st.sampled_from(
    ["Once", " upon", " a", " time", " there", "'s", " was", "\n\n", " 42", "tt", "ing", "—", "é"]
)


@given(st.one_of(st.text(), st.lists(words, max_size=30).map("".join), st.text("etaoin shrdlu")))
@settings(max_examples=300, deadline=None)
def test_the_embedded_model_encodes_as_the_oracle_does(
    embedded: tuple[Oracle, Tokenizer], text: str
) -> None:
    oracle, tokenizer = embedded
    assert tokenizer.encode(text) == oracle_ids(oracle, text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_token_of_the_embedded_model_is_out_of_reach(
    embedded: tuple[Oracle, Tokenizer],
) -> None:
    """Each one encodes to itself where its bytes are a text of one piece."""
    oracle, tokenizer = embedded
    for token_id in range(tokenizer.num_tokens):
        text = tokenizer.whole_texts[token_id]
        if text and len(oracle.pre_tokenizer.pre_tokenize_str(text)) == 1:
            assert tokenizer.encode(text) == [token_id] == oracle_ids(oracle, text)
