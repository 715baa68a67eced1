"""/tokenize, /detokenize, /tokenizer_info: what evaluation harnesses ask, and the strictness of bodies."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from server.api.routes.tokenize import DetokenizeReply, TokenizeReply, TokenizerInfo
from server.tokenizer import Tokenizer
from tests.api.conftest import EOS, HOLE, MODEL
from tests.api.fake_engine import INFO, FakeEngine
from tests.api.serving_app import error_of


def tokenize(client: httpx.Client, **fields: Any) -> TokenizeReply:
    response = client.post("/tokenize", json=fields)
    assert response.status_code == 200, response.text
    return TokenizeReply.model_validate_json(response.content)


def detokenize(client: httpx.Client, tokens: list[int]) -> str:
    response = client.post("/detokenize", json={"tokens": tokens})
    assert response.status_code == 200, response.text
    return DetokenizeReply.model_validate_json(response.content).prompt


def test_the_ids_are_those_of_a_completions_prompt(
    client: httpx.Client, engine: FakeEngine
) -> None:
    text = "Hello the well é日 <|endoftext|> x"
    reply = tokenize(client, prompt=text)
    assert (reply.count, reply.max_model_len) == (len(reply.tokens), INFO.max_model_len)
    assert reply.token_strs is None
    assert EOS not in reply.tokens
    client.post("/v1/completions", json={"prompt": text})
    assert engine.submitted[0].prompt_ids == reply.tokens
    assert detokenize(client, reply.tokens) == text


def test_long_texts_are_the_same_off_the_loop(client: httpx.Client, tokenizer: Tokenizer) -> None:
    text = "well, Hello the é日 " * 4000
    reply = tokenize(client, prompt=text)
    assert reply.tokens == tokenizer.encode(text)
    assert reply.count == len(reply.tokens)
    assert detokenize(client, reply.tokens) == text


def test_a_million_blanks_are_a_text_like_any_other(
    client: httpx.Client, engine: FakeEngine
) -> None:
    """tiktoken gives up on them: that was a 500."""
    text = " " * 1_000_000 + "a"
    assert tokenize(client, prompt=text).count == len(text)
    body = {"prompt": text, "truncate_prompt_tokens": 3, "max_tokens": 2}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    assert len(engine.submitted[0].prompt_ids) == 3


def test_a_long_reply_is_made_part_by_part(client: httpx.Client) -> None:
    """As a whole it would hold up every stream while it is made: so its length is not known before."""
    for is_long in (False, True):
        body = {"prompt": "é!" * (30_000 if is_long else 3), "return_token_strs": True}
        response = client.post("/tokenize", json=body)
        assert ("content-length" not in response.headers) is is_long
        reply = TokenizeReply.model_validate_json(response.content)
        assert reply.token_strs is not None
        assert len(reply.token_strs) == reply.count == 3 * len(body["prompt"]) // 2


def test_the_strings_of_tokens(client: httpx.Client) -> None:
    """The tests' tokenizer has no merges: a token is a byte."""
    reply = tokenize(client, prompt="Hi é", return_token_strs=True)
    assert reply.token_strs == ["H", "i", " ", "�", "�"]
    assert len(reply.tokens) == 5


@pytest.mark.parametrize("value", [True, False, None])
def test_no_special_tokens_are_added_either_way(client: httpx.Client, value: bool | None) -> None:
    assert tokenize(client, prompt="Hi", add_special_tokens=value).tokens == [72, 105]


def test_nothing_is_no_token(client: httpx.Client) -> None:
    assert tokenize(client, prompt="").tokens == []
    assert detokenize(client, []) == ""


def test_special_tokens_are_found_by_their_spelling_and_shown(client: httpx.Client) -> None:
    """lm-evaluation-harness finds the end token's id by tokenizing what /tokenizer_info calls it."""
    response = client.get("/tokenizer_info")
    info = TokenizerInfo.model_validate_json(response.content)
    assert (info.eos_token, info.bos_token, info.pad_token) == ("<|endoftext|>",) * 2 + (None,)
    assert info.eos_token is not None
    assert tokenize(client, prompt=info.eos_token).tokens == [EOS] == [info.eos_token_id]
    assert detokenize(client, [97, EOS]) == "a<|endoftext|>"
    assert (info.vocab_size, info.max_model_len) == (330, INFO.max_model_len)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": ["a"]}, "prompt"),
    ("/tokenize", {"prompt": None}, "prompt"),
    ("/tokenize", {"messages": [{"role": "user", "content": "a"}]}, "prompt"),
    ("/tokenize", {"prompt": "a", "messages": []}, "messages"),
    ("/tokenize", {"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
    ("/tokenize", {"prompt": "a", "return_token_strs": "yes"}, "return_token_strs"),
    ("/tokenize", {"prompt": "a", "model": 5}, "model"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": "abc"}, "tokens"),
    ("/detokenize", {"tokens": [1.0]}, "tokens"),
    ("/detokenize", {"tokens": [True]}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens"),
    ("/detokenize", {"tokens": [HOLE]}, "tokens"),
    ("/detokenize", {"tokens": [10**30]}, "tokens"),
    ("/detokenize", {"tokens": [1], "other": 1}, "other"),
]


@pytest.mark.parametrize(("path", "body", "param"), BAD)
def test_a_bad_field_is_named(
    client: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    error = error_of(client.post(path, json=body), 400)
    assert error["param"] == param
    assert param in error["message"]


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_bodies_are_bounded_and_strict(client: httpx.Client, path: str) -> None:
    headers = {"Content-Type": "application/json"}
    for content in (b"", b"[]", b'{"prompt": "\\ud800"}', b'{"tokens": [1], "tokens": [2]}'):
        error_of(client.post(path, content=content, headers=headers), 400)
    error_of(client.post(path, content=b" " * (5 << 20), headers=headers), 413)
    error_of(client.post(path, data={"prompt": "a"}), 415)


def test_twice_is_refused(client: httpx.Client) -> None:
    body = b'{"prompt": "a", "prompt": "b"}'
    headers = {"Content-Type": "application/json"}
    error = error_of(client.post("/tokenize", content=body, headers=headers), 400)
    assert error["param"] == "prompt"


def test_another_model_is_a_404(client: httpx.Client) -> None:
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [97]})):
        assert client.post(path, json={**body, "model": MODEL}).status_code == 200
        error = error_of(client.post(path, json={**body, "model": "other"}), 404)
        assert error["code"] == "model_not_found"
