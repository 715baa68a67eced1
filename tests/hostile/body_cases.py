"""B26 to B49 where a field's own kind does not say it: sizes, boundaries, what two fields make together, and
what must be served.
"""

from __future__ import annotations

import json
from typing import Any

from tests.hostile.case import SERVED_S, Case, refused, served
from tests.hostile.field_table import CONTEXT, VOCAB
from tests.hostile.sending import BODY, get, post

LONG_S = 1.0  # to read and to refuse megabytes


def _ask(**fields: Any) -> bytes:
    return post({**BODY, **fields})


def _too_long(
    name: str, prompt: Any, param: str = "prompt", status: int | tuple[int, ...] = 400
) -> Case:
    return refused(name, _ask(prompt=prompt), status=status, param=param, answer_s=LONG_S)


_MERGES = "there was a little server that never stopped once upon a time "
B29_LONG = [
    _too_long("B29-a-million-characters", "ab" * 500_000),
    _too_long("B29-one-character", "a" * 4_000_000),
    _too_long("B29-blanks", " " * 1_000_000),
    _too_long("B29-line-feeds", "\n" * 1_000_000),
    _too_long("B29-merges-at-every-place", _MERGES * 60_000),
    _too_long("B29-one-word-of-merges", _MERGES.replace(" ", "") * 70_000),
    _too_long("B29-digits", "0123456789" * 400_000),
    _too_long("B29-combining-marks", "e" + "\u0301" * 500_000),
    _too_long("B29-emoji-joined", "\U0001f468\u200d" * 100_000),
    Case("B29-ten-million-characters", (_ask(prompt="a" * 10_000_000),), (413,), answer_s=LONG_S),
    served("B29-truncated-is-served", _ask(prompt="a" * 1_000_000, truncate_prompt_tokens=5)),
    _too_long("B31-a-million-ids", [7] * 1_000_000),
    Case("B31-ten-million-ids", (_ask(prompt=[7] * 10_000_000),), (413,), answer_s=LONG_S),
    _too_long("B31-a-million-ids-in-lists", [[7] * 3000] * 300),
    _too_long("B32-100000-prompts", ["a"] * 100_000),
    _too_long("B32-100000-prompts-of-ids", [[7]] * 100_000),
    refused("B32-1025-prompts", _ask(prompt=["a"] * 1025), param="prompt"),
    served("B32-1024-prompts-are-taken", _ask(prompt=["a"] * 1024, max_tokens=1)),
]


def _full(num_prompt: int, max_tokens: int | None, **fields: Any) -> bytes:
    return post({"prompt": [7] * num_prompt, "max_tokens": max_tokens, **fields})


def _beyond(name: str, sent: bytes, param: str) -> Case:
    return refused(name, sent, param=param, code="context_length_exceeded")


B33_CONTEXT = [
    served("B33-one-less-and-1", _full(CONTEXT - 1, 1)),
    served("B33-full-and-0", _full(CONTEXT, 0, echo=True)),
    served("B33-16-less-and-null", _full(CONTEXT - 16, None)),
    _beyond("B33-full-and-1", _full(CONTEXT, 1), "prompt"),
    _beyond("B33-one-less-and-2", _full(CONTEXT - 1, 2), "max_tokens"),
    _beyond("B33-one-more-and-0", _full(CONTEXT + 1, 0, echo=True), "prompt"),
    _beyond("B33-one-more-and-1", _full(CONTEXT + 1, 1), "prompt"),
    _beyond("B33-15-less-and-null", _full(CONTEXT - 15, None), "max_tokens"),
    _beyond("B33-one-of-many", post({"prompt": [[7], [7] * CONTEXT], "max_tokens": 1}), "prompt"),
    served("B33-minus-1-keeps-what-fits", _full(3000, 16, truncate_prompt_tokens=-1)),
]

B36_COST = [
    refused("B36-best-of-below-n", _ask(n=3, best_of=2), param="best_of"),
    refused("B36-prompts-times-n", _ask(prompt=["a"] * 9, n=128), param="prompt"),
    refused("B36-prompts-times-best-of", _ask(prompt=["a"] * 9, best_of=128), param="prompt"),
    refused(
        "B36-tokens", _ask(prompt=["a"] * 8, n=128, max_tokens=1000, logprobs=20), param="prompt"
    ),
    refused(
        "B36-prompt-logprobs",
        _ask(prompt=[[7] * 1000] * 300, prompt_logprobs=20),
        param="prompt",
        answer_s=LONG_S,
    ),
    refused(
        "B36-echo-logprobs",
        _ask(prompt=[[7] * 1000] * 300, logprobs=20, echo=True),
        param="prompt",
        answer_s=LONG_S,
    ),
    refused("B36-best-of-streamed", _ask(n=2, best_of=3, stream=True), param="best_of"),
    refused("B35-0-without-echo", _ask(max_tokens=0), param="max_tokens"),
    refused("B35-min-above-max", _ask(min_tokens=3), param="min_tokens"),
]

_ALL = [*range(256)]
B40_BIAS = [
    refused("B40-1025-keys", _ask(logit_bias={str(i): 1 for i in range(1025)}), param="logit_bias"),
    refused(
        "B40-a-million-keys",
        post(
            b'{"prompt": "a", "logit_bias": {'
            + b",".join(b'"%d":1' % i for i in range(300_000))
            + b"}}"
        ),
        param="logit_bias",
        answer_s=LONG_S,
    ),
    served(
        "B40-every-token-banned-to-minus-100", _ask(logit_bias={str(i): -100 for i in range(298)})
    ),
    served(
        "B40-every-token-at-plus-100",
        _ask(logit_bias={str(i): 100 for i in range(298)}, temperature=1e308),
    ),
    refused(
        "B40-only-the-end-which-is-forbidden",
        _ask(allowed_token_ids=[297], min_tokens=1),
        param="allowed_token_ids",
    ),
    served("B38-nothing-left-but-one", _ask(top_p=0, min_p=1, top_k=1, temperature=1e-45)),
    served("B38-top-k-above-the-vocabulary", _ask(top_k=VOCAB + 1)),
    served(
        "B39-all-at-their-ends",
        _ask(presence_penalty=2, frequency_penalty=-2, repetition_penalty=1e308, max_tokens=50),
    ),
    served(
        "B39-at-their-other-ends",
        _ask(presence_penalty=-2, frequency_penalty=2, repetition_penalty=1e-45, max_tokens=50),
    ),
]

B41_STOPS = [
    refused("B41-a-million-stops", _ask(stop=["a"] * 700_000), param="stop", answer_s=LONG_S),
    refused("B41-1-MB-stop", _ask(stop="a" * 1_000_000), param="stop", answer_s=LONG_S),
    refused("B41-near-misses-of-10-KB", _ask(stop=["a" * 9_999 + c for c in "bcde"]), param="stop"),
    served(
        "B41-near-misses-of-256",
        _ask(stop=["a" * 255 + c for c in "bcdefghijklmnopq"], max_tokens=100),
    ),
    refused(
        "B42-100000-stop-ids",
        _ask(stop_token_ids=[7] * 100_000),
        param="stop_token_ids",
        answer_s=LONG_S,
    ),
    served("B43-20-with-echo-on-a-full-context", _full(CONTEXT, 0, echo=True, logprobs=20)),
    refused("B43-21", _ask(logprobs=21), param="logprobs"),
    refused("B45-options-without-stream", _ask(stream_options={}), param="stream_options"),
    refused(
        "B45-prompt-logprobs-streamed",
        _ask(stream=True, prompt_logprobs=1),
        param="prompt_logprobs",
    ),
    refused(
        "B45-ids-by-header-without-stream",
        post(None, b"X-Stream-Resumable: 1"),
        param="X-Stream-Resumable",
    ),
    refused(
        "B45-ids-by-another-word",
        post(None, b"X-Stream-Resumable: yes"),
        param="X-Stream-Resumable",
    ),
    served("B46-a-user-of-1-MB", _ask(user="u" * 1_000_000)),
]


def _no_model(name: str, model: str) -> Case:
    return refused(
        f"B47-{name}", _ask(model=model), status=404, param="model", code="model_not_found"
    )


_MODELS = {
    "unknown": "gpt-5",
    "parent": "../../etc/passwd",
    "absolute": "/etc/passwd",
    "url": "http://localhost/x",
    "nul": "tiny-gpt\0",
    "100000-characters": "m" * 100_000,
    "look-alike": "t\u0456ny-gpt",
    "empty": "",
    "file-url": "file:///etc/passwd",
    "dot": ".",
    "upper-case": "TINY-GPT",
    "blank-behind": "tiny-gpt ",
    "full-width": "\uff54iny-gpt",
    "here": "./tiny-gpt",
}
B47_MODELS = [
    *[_no_model(name, model) for name, model in _MODELS.items()],
    *[
        refused(
            f"B47-by-path-{target.decode()}",
            get(b"/v1/models/" + target),
            status=404,
            param="model",
        )
        for target in (
            b"gpt-5",
            b"..%2f..%2fetc%2fpasswd",
            b"%00",
            b"//",
            b"a" * 4000,
            b"%ff%fe",
            b"tiny-gpt/",
            b"tiny-gpt%0A",
        )
    ],
]

_UNSUPPORTED = {
    "prompt_embeds": "AAAA",
    "chat_template": "{{ 7 * 7 }}",
    "logits_processors": ["os.system"],
    "suffix": "x",
    "guided_json": {},
    "guided_regex": "a",
    "guided_choice": ["a"],
    "guided_grammar": "a",
}
_UNKNOWN = (
    "max_completion_tokens",
    "messages",
    "tools",
    "functions",
    "mm_processor_kwargs",
    "lora_request",
    "vllm_xargs",
    "kv_transfer_params",
    "__class__",
    "__proto__",
    "prompt ",
    "Prompt",
    "top_a",
    "typical_p",
    "use_beam_search",
    "length_penalty",
    "detokenize",
    "repetition_penalty_range",
    "",
)
B48_UNKNOWN = [
    *[
        refused(f"B48-{name}", _ask(**{name: value}), param=name)
        for name, value in _UNSUPPORTED.items()
    ],
    *[
        refused(f"B48-unknown-{name or 'empty'}", _ask(**{name: 1}), param=name)
        for name in _UNKNOWN
    ],
    refused(
        "B48-both-ways-of-structure",
        _ask(structured_outputs={"regex": "a"}, response_format={"type": "json_object"}),
        param="structured_outputs",
    ),
    refused(
        "B48-structure-without-an-end",
        _ask(structured_outputs={"regex": "a"}, ignore_eos=True),
        param="ignore_eos",
    ),
    refused(
        "B48-structure-and-min-tokens",
        _ask(structured_outputs={"regex": "a"}, min_tokens=1),
        param="min_tokens",
    ),
]

# Text that must come back as it was sent: B26, and B34, which is text though it spells a special token.
ROUND_TRIPS = {
    "B26-nul": "a\0b",
    "B26-controls": "".join(map(chr, range(1, 32))),
    "B26-delete": "\x7f\x80\x9f",
    "B26-bidi": "a\u202eb\u202c\u2066c\u2069",
    "B26-non-characters": "\ufffe\uffff\ufdd0\U0001fffe",
    "B26-replacement": "\ufffd",
    "B26-zero-width": "a\u200b\u200d\ufeffb",
    "B26-last": "\U0010ffff",
    "B26-private": "\ue000\U000f0000",
    "B26-separators": "a\u2028b\u2029c\x85d\vd\fe",
    "B26-combining": "e\u0301\u0301",
    "B26-emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "B26-returns": "a\r\nb\rc\n\n",
    "B26-sse": "data: x\n\nid: 1\n\n",
    "B26-quotes": '"\\/\b',
    "B26-markup": "</script><!--",
    "B34-end": "<|endoftext|>",
    "B34-end-twice": "<|endoftext|><|endoftext|>",
    "B34-others": "<s></s>[INST]<|im_start|>",
    "B34-end-within": "a<|endoftext|>b",
}

BODY_CASES: list[Case] = [
    *B29_LONG,
    *B33_CONTEXT,
    *B36_COST,
    *B40_BIAS,
    *B41_STOPS,
    *B47_MODELS,
    *B48_UNKNOWN,
]


def echo_of(text: str, **fields: Any) -> Case:
    body = {"prompt": text, "max_tokens": 0, "echo": True, "return_token_ids": True, **fields}
    return Case("echo", (post(json.dumps(body).encode()),), (200,), answer_s=SERVED_S)
