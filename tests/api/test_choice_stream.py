"""One choice, any tokens: joined pieces = the plain text, offsets point at their tokens."""

from __future__ import annotations

from array import array
from codecs import getincrementaldecoder

from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.reply.choice_stream import ChoiceOptions, ChoiceStream, Delta
from server.api.reply.logprobs import LogprobsBuilder, TokenNames
from server.api.reply.prompt_view import PromptView
from server.api.reply.stop_strings import StopPattern
from server.sequence import FirstOutput, PromptLogprobs, SequenceOutput, TokenLogprobs
from server.tokenizer import Tokenizer
from server.tokenizer.encoding import Vocabulary

EOS = 256
# halves and doubles of characters, beside all single bytes
EXTRA = [b"\xe6\x97", b"\xa5a", b"\xc3\xa9\xe6", "日本".encode(), b"ab", b"ST", b"OP", b"\xf0\x9f"]


def make_tokenizer() -> Tokenizer:
    tokens = {i: bytes([i]) for i in range(256)} | {EOS: b"<|endoftext|>"}
    mergeable = [tokens[i] for i in range(256)]
    tokens |= {257 + i: raw for i, raw in enumerate(EXTRA)}
    return Tokenizer(Vocabulary(tokens, mergeable, {"<|endoftext|>": EOS}, None, EOS))


TOKENIZER = make_tokenizer()
NAMES = TokenNames(TOKENIZER)
texts = st.text("aé日👩STOP ", max_size=6).map(lambda text: list(text.encode()))
token_ids = st.lists(
    st.one_of(texts, st.lists(st.integers(0, 256 + len(EXTRA)), max_size=3)), max_size=10
).map(lambda parts: [i for part in parts for i in part])


def options(
    stops: list[str] | None = None,
    *,
    min_tokens: int = 0,
    logprobs: int | None = None,
    echo: bool = False,
    shows_special: bool = False,
    token_ids: bool = False,
) -> ChoiceOptions:
    return ChoiceOptions(
        stop=StopPattern(stops) if stops else None,
        min_tokens=min_tokens,
        logprobs=logprobs,
        has_echo=echo,
        shows_special=shows_special,
        has_token_ids=token_ids,
    )


def entry(token_id: int) -> TokenLogprobs:
    return TokenLogprobs(-1.0, 1, [token_id], [-1.0])


def packed(prompt: list[int]) -> PromptLogprobs:
    n = len(prompt) - 1
    ones, minus = array("i", [1] * n).tobytes(), array("f", [-1.0] * n).tobytes()
    return PromptLogprobs(0, 1, 1, minus, ones, array("i", prompt[1:]).tobytes(), minus)


def new_choice(options: ChoiceOptions, prompt: list[int]) -> ChoiceStream:
    view = PromptView(prompt, TOKENIZER, shows_special=options.shows_special)
    view.logprobs.add(packed(prompt))
    return ChoiceStream(TOKENIZER, NAMES, options, view)


def stream(
    ids: list[int], options: ChoiceOptions, prompt: list[int], per_step: int = 1
) -> tuple[ChoiceStream, list[Delta]]:
    """Feeds `ids`, the last of them at max_tokens, `per_step` in one output."""
    choice = new_choice(options, prompt)
    deltas: list[Delta] = []
    for start in range(0, len(ids), per_step):
        step = ids[start : start + per_step]
        finish = "length" if start + per_step >= len(ids) else None
        first = FirstOutput(0, 0.0) if start == 0 else None
        logprobs = [entry(i) for i in step]
        deltas += choice.push(SequenceOutput(0, step, logprobs, finish, None, first))
        if choice.finish_reason is not None:
            break
    return choice, deltas


@given(token_ids.filter(bool), st.integers(1, 4))
@settings(deadline=None)
def test_joined_pieces_are_the_decoded_text(ids: list[int], per_step: int) -> None:
    choice, deltas = stream(ids, options(), [97], per_step)
    assert "".join(delta.text for delta in deltas) == TOKENIZER.decode(ids)
    assert choice.num_tokens == len(ids)
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]


@given(
    token_ids.filter(bool),
    st.lists(st.text("aSTOP日", min_size=1, max_size=3), min_size=1, max_size=3),
    st.integers(1, 4),
)
@settings(deadline=None)
def test_a_stop_string_cuts_the_same_text_however_the_steps_come(
    ids: list[int], stops: list[str], per_step: int
) -> None:
    one, by_one = stream(ids, options(stops), [97])
    many, by_many = stream(ids, options(stops), [97], per_step)
    text = "".join(delta.text for delta in by_one)
    assert text == "".join(delta.text for delta in by_many)
    assert one.num_tokens == many.num_tokens
    assert by_one[-1] == by_many[-1]._replace(text=by_one[-1].text)
    if by_one[-1].finish_reason == "length":
        assert text == TOKENIZER.decode(ids)
        assert not any(stop in text for stop in stops)
    else:
        assert TOKENIZER.decode(ids).startswith(text + str(by_one[-1].stop_reason))


@given(token_ids.filter(bool))
@settings(deadline=None)
def test_a_piece_is_sent_for_every_token_that_is_not_held(ids: list[int]) -> None:
    """Clients count chunks as tokens, so one without text is sent, too, if nothing is held."""
    choice = new_choice(options(), [97])
    decoder = getincrementaldecoder("utf-8")("replace")
    for token_id in ids:
        deltas = choice.push(SequenceOutput(0, [token_id], None, None, None, None))
        text = decoder.decode(TOKENIZER.text_bytes[token_id])
        is_held = not text and decoder.getstate()[0]
        assert [delta.text for delta in deltas] == ([] if is_held else [text])


@given(token_ids.filter(bool), token_ids.filter(bool), st.booleans())
@settings(deadline=None)
def test_text_offsets_point_at_the_tokens_characters(
    prompt: list[int], ids: list[int], echo: bool
) -> None:
    _, deltas = stream(ids, options(logprobs=1, echo=echo), prompt)
    text = "".join(delta.text for delta in deltas)
    shown = [*prompt, *ids] if echo else ids
    logprobs = [delta.logprobs for delta in deltas if delta.logprobs is not None]
    offsets = [offset for part in logprobs for offset in part["text_offset"]]
    tokens = [name for part in logprobs for name in part["tokens"]]
    assert tokens == [NAMES[i] for i in shown]
    assert offsets == sorted(offsets)
    for token_id, name, offset in zip(shown, tokens, offsets, strict=True):
        if token_id != EOS and not name.startswith("bytes:"):
            assert text[offset : offset + len(name)] == name


@given(token_ids.filter(bool), token_ids.filter(bool))
@settings(deadline=None)
def test_echoed_text_is_the_decoded_whole(prompt: list[int], ids: list[int]) -> None:
    _, deltas = stream(ids, options(echo=True), prompt)
    assert "".join(delta.text for delta in deltas) == TOKENIZER.decode([*prompt, *ids])


def test_a_held_token_comes_with_the_next() -> None:
    _, deltas = stream([*b"aSTx", 0xE6, 0x97, 0xA5, 98], options(["STOP"], logprobs=1), [97])
    assert [delta.text for delta in deltas] == ["a", "STx", "日", "b"]
    assert [delta.logprobs and delta.logprobs["tokens"] for delta in deltas] == [
        ["a"],
        ["S", "T", "x"],
        ["bytes:\\xe6", "bytes:\\x97", "bytes:\\xa5"],
        ["b"],
    ]
    assert [delta.logprobs and delta.logprobs["text_offset"] for delta in deltas] == [
        [0],
        [1, 2, 3],
        [4, 4, 4],
        [5],
    ]


def test_a_special_token_has_no_text_but_a_chunk() -> None:
    _, deltas = stream([97, EOS, 98], options(), [97])
    assert [delta.text for delta in deltas] == ["a", "", "b"]
    _, deltas = stream([97, EOS, 98], options(shows_special=True), [97])
    assert [delta.text for delta in deltas] == ["a", "<|endoftext|>", "b"]


@given(token_ids.filter(bool), token_ids.filter(bool), st.integers(1, 4), st.booleans())
@settings(deadline=None)
def test_the_pieces_ids_are_all_of_them(
    prompt: list[int], ids: list[int], per_step: int, echo: bool
) -> None:
    choice, deltas = stream(ids, options(["STOP"], token_ids=True, echo=echo), prompt, per_step)
    shown = [token_id for delta in deltas for token_id in delta.token_ids or ()]
    assert shown == ids[: choice.num_tokens]
    num_shown = 0
    for delta in deltas:
        assert delta.token_ids is not None
        num_shown += len(delta.token_ids)
        assert num_shown == delta.num_tokens
    assert [delta.prompt_token_ids for delta in deltas] == [prompt] + [None] * (len(deltas) - 1)


def test_more_logprobs_than_are_shown_are_cut() -> None:
    choice = new_choice(options(logprobs=1), [97])
    logprobs = [TokenLogprobs(-3.0, 3, [98, 99], [-1.0, -2.0])]
    (delta,) = choice.push(SequenceOutput(0, [97], logprobs, None, None, None))
    assert delta.logprobs is not None
    assert delta.logprobs["top_logprobs"] == [{"b": -1.0, "a": -3.0}]


def test_the_mean_logprob_is_of_its_own_tokens() -> None:
    """Those behind a stop string are not its own; those that are held back are."""
    choice = new_choice(options(["b"]), [97])
    logprobs = [TokenLogprobs(value, 1, [], []) for value in (-1.0, -4.0, -9.0)]
    choice.push(SequenceOutput(0, [97, 98, 99], logprobs, None, None, None))
    assert (choice.num_tokens, choice.mean_logprob) == (2, -2.5)


def test_the_sampled_token_is_always_among_the_top_ones() -> None:
    builder = LogprobsBuilder(NAMES)
    builder.add(99, TokenLogprobs(-3.0, 1, [97, 98], [-0.5, -1.0]), 0)
    builder.add(98, TokenLogprobs(-1.0, 1, [97, 98], [-0.5, -1.0]), 1)
    builder.add(97, TokenLogprobs(-0.5, 1, [], []), 2)
    builder.add(97, TokenLogprobs(float("-inf"), 1, [98], [-0.0]), 3)
    taken = builder.take()
    assert taken["top_logprobs"] == [
        {"a": -0.5, "b": -1.0, "c": -3.0},
        {"a": -0.5, "b": -1.0},
        {"a": -0.5},
        {"b": 0.0, "a": -9999.0},
    ]
    assert taken["token_logprobs"] == [-3.0, -1.0, -0.5, -9999.0]
    assert builder.take()["tokens"] == []


def test_where_names_collide_the_sampled_tokens_value_stays_else_the_better_one() -> None:
    """An ordinary token can spell what stands for bytes, or for a special token."""
    tokens = {i: bytes([i]) for i in range(256)}
    spelled = tokens | {256: b"<|x|>", 257: b"bytes:\\xff", 258: b"<|x|>"}
    vocabulary = Vocabulary(spelled, [*tokens.values()], {"<|x|>": 256}, None, None)
    builder = LogprobsBuilder(TokenNames(Tokenizer(vocabulary)))
    builder.add(255, TokenLogprobs(-2.0, 1, [257, 255], [-1.0, -2.0]), 0)
    builder.add(97, TokenLogprobs(-5.0, 1, [256, 258], [-1.0, -2.0]), 0)
    assert builder.take()["top_logprobs"] == [
        {"bytes:\\xff": -2.0},
        {"<|x|>": -1.0, "a": -5.0},
    ]
