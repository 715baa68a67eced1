"""Grammars through llguidance, within limits. Knows token bytes; no process, no sequence.

Its limits are counted in steps of its own, so they do not depend on the machine. What they do not bound (an
object of ten thousand properties) is bounded by the process's CPU time: see checker.py.
"""

from __future__ import annotations

import json
import re

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from server.sequence import FailureKind, Grammar
from server.tokenizer import Tokenizer

# Measured with a vocabulary of 4,096: a mask at a limit takes 5 to 50 ms, a compile 0.3 s.
_LIMITS = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=100_000,
    step_max_items=30_000,
    max_lexer_states=50_000,  # 1 to 2 kB each
    max_grammar_size=200_000,
    verbose_errors=False,
)
# Between two tokens of JSON: nothing, a blank, or a new line and its indentation. Without a bound a model may
# put in blanks for ever; this fits every usual way of printing JSON.
_WHITESPACE = r"\x20|\x0A[\x20\x09]{0,24}"
_NOT_KNOWN = (
    "unimplemented",
    "not supported",
    "unknown format",
    "failed to generate",
    "resource '",
)
_TOO_MUCH = (
    "too many",
    "too big",
    "too large",
    "too deep",
    "limit",
    "fuel",
    "too complex",
    "items; max",
)


class GrammarRefused(Exception):
    """A grammar, or a sequence of one, that cannot go on. The text of llguidance stays in here."""

    def __init__(self, kind: FailureKind) -> None:
        super().__init__(kind)
        self.kind: FailureKind = kind


class _TokenTable:
    """A tokenizer as llguidance takes one."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.eos_token_id
        self.bos_token_id = tokenizer.bos_token_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.num_tokens)]
        self.special_token_ids = list(tokenizer.special_tokens.values())
        self._encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))


class Compiler:
    """`tokenizer` has an end token; `vocab_size` is the width of the model's logits."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._num_bytes = -(-vocab_size // 32) * 4
        self._tokenizer = LLTokenizer(
            _TokenTable(tokenizer),  # type: ignore[arg-type]  # a duck of its TokenizerWrapper
            n_vocab=tokenizer.num_tokens,
            eos_token=tokenizer.eos_token_id,
        )

    def compile(self, source: str) -> LLMatcher:
        """`source` is what `to_source` gave. Raises GrammarRefused. Releases the GIL while it works."""
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=_LIMITS)
        _check(matcher, is_compiling=True)
        return matcher

    def mask(self, matcher: LLMatcher) -> bytes:
        """What may follow. Raises GrammarRefused. Releases the GIL while it works."""
        allowed = matcher.compute_bitmask()
        _check(matcher)
        return allowed[: self._num_bytes].ljust(self._num_bytes, b"\0")


def consume(matcher: LLMatcher, token_ids: list[int]) -> None:
    """The ids were drawn under the matcher's masks. Raises GrammarRefused."""
    matcher.consume_tokens(token_ids)
    _check(matcher)


def to_source(grammar: Grammar) -> str:
    """The grammar in llguidance's own form. Raises GrammarRefused."""
    try:
        return _to_source(grammar)
    except RecursionError:
        raise GrammarRefused("grammar_too_complex") from None
    except Exception as error:  # of a parser of JSON or GBNF, over what a user wrote
        raise GrammarRefused(_kind_of(str(error).lower(), is_compiling=True)) from None


def _to_source(grammar: Grammar) -> str:
    kind, source = grammar.kind, grammar.source
    if kind == "json_object":
        return _json_source('{"type": "object"}')
    if kind == "json_schema":
        return _json_source(source)
    if kind == "regex":
        return LLMatcher.grammar_from_regex(source)
    if kind == "choice":
        return LLMatcher.grammar_from_regex("|".join(map(_literal, json.loads(source))))
    return LLMatcher.grammar_from_lark(any_to_lark(source) if "::=" in source else source)


def _json_source(schema: str) -> str:
    return LLMatcher.grammar_from_json_schema(
        "{}" if schema == "true" else schema,  # which it does not know, and which allows as much
        overrides={"whitespace_pattern": _WHITESPACE, "coerce_one_of": False, "lenient": False},
    )


def _literal(text: str) -> str:
    """A regex of exactly this text, whatever is in it."""
    return re.sub(r"[^0-9A-Za-z]", lambda match: f"\\x{{{ord(match[0]):x}}}", text)


def _check(matcher: LLMatcher, *, is_compiling: bool = False) -> None:
    if matcher.is_error():
        raise GrammarRefused(_kind_of(matcher.get_error().lower(), is_compiling))


def _kind_of(error: str, is_compiling: bool) -> FailureKind:
    if any(words in error for words in _TOO_MUCH):
        return "grammar_too_complex"
    if any(words in error for words in _NOT_KNOWN):
        return "grammar_unsupported"
    return "grammar_invalid" if is_compiling else "no_token_allowed"
