"""The fields of the routes that take a body, as the API's description has them, written down once and
independently of the server's own schema.
"""

from __future__ import annotations

from tests.hostile.field import (
    STRINGS,
    Field,
    flag,
    ignored,
    integers,
    listed,
    numbers,
    quoted,
    real,
    refused,
    strings,
    text,
    whole,
)

# Of the model: ids below 298 are tokens; up to 320 the logits are padded; the context is 2,048
LAST_ID, VOCAB, CONTEXT, PROMPT_LEN = 297, 320, 2048, 2
_BAD_IDS = tuple(
    f"[{text}]"
    for text in (
        "-1",
        str(LAST_ID + 1),
        str(VOCAB - 1),
        str(VOCAB),
        str(1 << 31),
        str(1 << 63),
        str(10**40),
        "1.0",
        "1.5",
        "true",
        '"5"',
        "null",
        "[1]",
        "{}",
        "1, null",
        '1, "a"',
        "NaN",
        "1e999",
    )
)
_BAD_BIASES = tuple(
    "{" + text + "}"
    for text in (
        '"abc": 1',
        '"-1": 1',
        f'"{LAST_ID + 1}": 1',
        f'"{VOCAB}": 1',
        '"1.0": 1',
        '"": 1',
        '" 1": 1',
        '"\uff11": 1',
        '"1": 100.5',
        '"1": -100.5',
        '"1": NaN',
        '"1": 1e308',
        '"1": -Infinity',
        '"1": 1e999',
        '"1": "1"',
        '"1": null',
        '"1": true',
        '"1": [1]',
        f'"{10**40}": 1',
        '"1": 1, "01": 1',
    )
)
_SCHEMA = '{"type": "json_schema", "json_schema": $}'
_NAMED = '{"type": "json_schema", "json_schema": {"schema": {"enum": ["a"]}, "%s": $}}'
_SMALLEST, _BELOW_100 = "1e-45", "2.2250738585072014e-308"

PROMPTS = Field(
    "prompt",
    strings(1, 2000),
    ('"Hi"', '["Hi", "Ho"]', "[72, 105]", "[[72], [105, 106]]", f"[{LAST_ID}]"),
    (
        '["a", 1]',
        '[1, "a"]',
        "[[1], 2]",
        '[["a"]]',
        "[[[1]]]",
        '[""]',
        "[[]]",
        '["a", ""]',
        "[[1], []]",
        "[true]",
        *(text for text in _BAD_IDS if text not in ('["5"]', "[[1]]")),
        f"[[{VOCAB}]]",
        "[1, -1]",
        '{"text": "a"}',
        listed("[1]", 1025),
        listed('"a"', 1025),
        "[[1], [1.0]]",
    ),
    is_required=True,
)

FIELDS: list[Field] = [
    Field(
        "model",
        frozenset(),
        ('"tiny-gpt"',),
        ('"gpt"', '"../tiny-gpt"', '"TINY-GPT"', '"tiny-gpt "', '"tiny-gpt\\u0000"'),
        statuses=dict.fromkeys(
            [*STRINGS, '"gpt"', '"../tiny-gpt"', '"TINY-GPT"', '"tiny-gpt "', '"tiny-gpt\\u0000"'],
            404,
        ),
    ),
    PROMPTS,
    Field(
        "max_tokens", integers(1, 100), ("2", "16"), (str(CONTEXT - PROMPT_LEN + 1), str(CONTEXT))
    ),
    Field("min_tokens", integers(0, 2), ("2",), ("3",)),
    flag("ignore_eos"),
    real(
        "temperature",
        0,
        1e308,
        (_SMALLEST, "1e-4", "1e-5", "2", "1e308", _BELOW_100),
        ("-0.001", "-1e-300"),
    ),
    real("top_p", 0, 1, ("1e-9", _SMALLEST, "0.999999999"), ("1.0000001", "-1e-9")),
    whole("top_k", -1, (1 << 31) - 1),
    real("min_p", 0, 1, (_SMALLEST, "1"), ("1.0000001", "-1e-9")),
    real("presence_penalty", -2, 2, ("-2", "2"), ("-2.0001", "2.0001", "1000000000")),
    real("frequency_penalty", -2, 2, ("-2", "2"), ("-2.0001", "2.0001", "-1000000000")),
    Field(
        "repetition_penalty",
        numbers(1e-300, 1e308),
        (_SMALLEST, "1e308", "1e-30"),
        ("-0.5", "-1e-300"),
    ),
    Field(
        "logit_bias",
        frozenset({"object"}),
        ('{"1": 100, "2": -100}', f'{{"{LAST_ID}": 0}}'),
        _BAD_BIASES,
    ),
    Field(
        "allowed_token_ids", frozenset({"100000-numbers"}), ("[7]", f"[{LAST_ID}, 7, 7]"), _BAD_IDS
    ),
    Field(
        "bad_words",
        frozenset({"list"}),
        ('["a"]', listed('"a"', 256), f"[{quoted(256)}]"),
        (listed('"a"', 257), f"[{quoted(257)}]", '[""]', "[1]", '["a", null]', '[["a"]]'),
    ),
    whole("seed", -(1 << 63), (1 << 63) - 1),
    whole("n", 1, 128, blamed=("prompt",)),
    whole("best_of", 1, 128),
    Field(
        "stop",
        strings(1, 256) | {"list"},
        (listed('"zq"', 16), f"[{quoted(256)}]", '"\\u0000"'),
        (
            listed('"a"', 17),
            f"[{quoted(257)}]",
            '[""]',
            '["a", ""]',
            "[1]",
            '["a", null]',
            '[["a"]]',
            "[" + ", ".join([quoted(10_000)] * 4) + "]",
        ),
    ),
    Field(
        "stop_token_ids",
        frozenset({"list"}),
        ("[7, 7]", listed("7", 256)),
        (listed("7", 257), *_BAD_IDS),
    ),
    flag("include_stop_str_in_output"),
    whole("logprobs", 0, 20),
    whole("prompt_logprobs", 0, 20),
    flag("echo"),
    flag("stream"),
    Field(
        "stream_options",
        frozenset({"object"}),
        (),
        ('{"a": 1}', '{"include_usage": 1}'),
        beside='"stream": true',
        blamed=("stream_options.a", "stream_options.include_usage", "stream_options.0"),
    ),
    *[
        flag(f"stream_options.{name}", within=f'{{"{name}": $}}', beside='"stream": true')
        for name in ("include_usage", "continuous_usage_stats", "resumable")
    ],
    Field(
        "response_format",
        frozenset(),
        ('{"type": "text"}', '{"type": "json_object"}'),
        (
            '{"type": "json_schema"}',
            '{"type": "text", "json_schema": {"schema": {}}}',
            '{"type": "xml"}',
            '{"type": "text", "a": 1}',
        ),
        blamed=(
            "response_format.type",
            "response_format.json_schema",
            "response_format.a",
            "response_format.0",
        ),
    ),
    Field(
        "response_format.type",
        frozenset(),
        ('"text"', '"json_object"'),
        ('"TEXT"', '"json_schema"'),
        within='{"type": $}',
        is_required=True,
        blamed=("response_format.json_schema",),
    ),
    Field(
        "response_format.json_schema",
        frozenset(),
        ('{"schema": {"enum": ["a"]}}',),
        ('{"schema": {}, "a": 1}',),
        within=_SCHEMA,
        is_required=True,
        blamed=(
            "response_format.json_schema.schema",
            "response_format.json_schema.a",
            "response_format.json_schema.0",
        ),
    ),
    *[
        text(f"response_format.json_schema.{name}", 0, 1 << 30, within=_NAMED % name)
        for name in ("name", "description")
    ],
    Field(
        "response_format.json_schema.schema",
        frozenset({"true", "object", "object-of-null"}),
        ('{"enum": ["a", "b"]}',),
        ('{"type": "nothing"}',),
        within='{"type": "json_schema", "json_schema": {"schema": $}}',
        is_required=True,
        blamed=("response_format",),
    ),
    flag("response_format.json_schema.strict", within=_NAMED % "strict"),
    Field(
        "structured_outputs",
        frozenset(),
        ('{"regex": "a+"}',),
        ('{"regex": "a", "choice": ["a"]}', '{"regex": null}', '{"a": 1}'),
        blamed=("structured_outputs.a", "structured_outputs.0"),
    ),
    Field(
        "structured_outputs.json",
        frozenset({"true", "object", "object-of-null"}),
        ('{"enum": ["a"]}', '"{}"', '"true"'),
        ('"{"', '"[]"', '"NaN"', '{"type": "nothing"}'),
        within='{"json": $}',
        is_required=True,
        blamed=("structured_outputs",),
    ),
    Field(
        "structured_outputs.regex",
        frozenset({"string", "digits", "string-NaN"}),
        ('"[a-z]{3}"',),
        ('"("', '"["', '"a{3,1}"', quoted(8193)),
        within='{"regex": $}',
        is_required=True,
        blamed=("structured_outputs",),
    ),
    Field(
        "structured_outputs.choice",
        frozenset(),
        ('["a", "b"]', f"[{quoted(1024)}]"),
        (
            '["a", "a"]',
            '[""]',
            f"[{quoted(1025)}]",
            "[" + ", ".join(f'"{i}"' for i in range(1025)) + "]",
            '"ab"',
        ),
        within='{"choice": $}',
        is_required=True,
        blamed=("structured_outputs",),
    ),
    Field(
        "structured_outputs.grammar",
        frozenset(),
        ('"root ::= \\"a\\""', '"root ::="'),
        ('"::="', quoted(65_537)),
        within='{"grammar": $}',
        is_required=True,
        blamed=("structured_outputs",),
    ),
    Field(
        "truncate_prompt_tokens",
        integers(1, CONTEXT) | {"minus-1"},
        ("1", str(CONTEXT)),
        ("-2", str(CONTEXT + 1)),
    ),
    *[
        flag(name)
        for name in (
            "skip_special_tokens",
            "spaces_between_special_tokens",
            "add_special_tokens",
            "return_token_ids",
            "return_tokens_as_token_ids",
        )
    ],
    text("cache_salt", 1, 256),
    whole("priority", -(1 << 31), (1 << 31) - 1),
    Field(
        "request_id",
        strings(1, 128),
        (quoted(128), '"A-z.0:_"'),
        (quoted(129), '"a b"', '"a\\n"', '"ä"', '"../a"'),
    ),
    *map(ignored, ("user", "metadata", "store")),
    *map(
        refused,
        (
            "suffix",
            "prompt_embeds",
            "logits_processors",
            "chat_template",
            "guided_json",
            "guided_regex",
            "guided_choice",
            "guided_grammar",
        ),
    ),
]

_TOKENIZE, _DETOKENIZE = "/tokenize", "/detokenize"
_OTHER_MODELS = dict.fromkeys([*STRINGS, '"gpt"'], 404)
TOKENIZE_FIELDS: list[Field] = [
    Field(
        "model", frozenset(), ('"tiny-gpt"',), ('"gpt"',), target=_TOKENIZE, statuses=_OTHER_MODELS
    ),
    Field(
        "prompt",
        frozenset(STRINGS),
        ('"\\u0000"',),
        ('["a"]',),
        target=_TOKENIZE,
        is_required=True,
    ),
    flag("add_special_tokens", target=_TOKENIZE),
    flag("return_token_strs", target=_TOKENIZE),
]
DETOKENIZE_FIELDS: list[Field] = [
    Field(
        "model",
        frozenset(),
        ('"tiny-gpt"',),
        ('"gpt"',),
        target=_DETOKENIZE,
        statuses=_OTHER_MODELS,
    ),
    Field(
        "tokens",
        frozenset({"list", "100000-numbers"}),
        (f"[{LAST_ID}]",),
        _BAD_IDS,
        target=_DETOKENIZE,
        is_required=True,
    ),
]
