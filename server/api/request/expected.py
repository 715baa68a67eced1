"""What a field must be, for the sentence of a 400. The names are as clients know them."""

from __future__ import annotations

from server.api.request.protocol import (
    MAX_BAD_WORD_CHARS,
    MAX_BAD_WORDS,
    MAX_CHOICES,
    MAX_LOGIT_BIASES,
    MAX_LOGPROBS,
    MAX_REQUEST_ID_CHARS,
    MAX_SALT_CHARS,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)
from server.api.request.structured_fields import (
    MAX_ALTERNATIVE_CHARS,
    MAX_ALTERNATIVES,
    MAX_GRAMMAR_BYTES,
    MAX_REGEX_BYTES,
)

_BOOL = "true or false"
_STRING = "a string"
_SHARE = "a number between 0 and 1"
_PENALTY = "a number between -2 and 2"
_COUNT = "an integer of at least 0"
_NUM_CHOICES = f"an integer between 1 and {MAX_CHOICES}"
_NUM_LOGPROBS = f"an integer between 0 and {MAX_LOGPROBS}"

EXPECTED = {
    "model": _STRING,
    "prompt": "a string, a list of strings, a list of token ids, or a list of lists of token ids",
    "max_tokens": _COUNT,
    "min_tokens": _COUNT,
    "ignore_eos": _BOOL,
    "temperature": "a finite number of at least 0",
    "top_p": _SHARE,
    "top_k": "an integer of at least -1",
    "min_p": _SHARE,
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "repetition_penalty": "a finite number above 0",
    "logit_bias": f"a map of at most {MAX_LOGIT_BIASES} token ids to numbers between -100 and 100",
    "allowed_token_ids": "a list of at least one token id",
    "bad_words": f"a list of at most {MAX_BAD_WORDS} strings, each of 1 to {MAX_BAD_WORD_CHARS} "
    "characters",
    "seed": "a 64-bit integer",
    "n": _NUM_CHOICES,
    "best_of": _NUM_CHOICES,
    "stop": f"a string or at most {MAX_STOP_STRINGS} strings, each of 1 to {MAX_STOP_CHARS} "
    "characters",
    "stop_token_ids": f"a list of at most {MAX_STOP_TOKEN_IDS} token ids",
    "include_stop_str_in_output": _BOOL,
    "logprobs": _NUM_LOGPROBS,
    "prompt_logprobs": _NUM_LOGPROBS,
    "echo": _BOOL,
    "stream": _BOOL,
    "stream_options": "an object",
    "stream_options.include_usage": _BOOL,
    "stream_options.continuous_usage_stats": _BOOL,
    "stream_options.resumable": _BOOL,
    "response_format": "an object with a type",
    "response_format.type": "text, json_object or json_schema",
    "response_format.json_schema": "an object with a schema",
    "response_format.json_schema.name": _STRING,
    "response_format.json_schema.description": _STRING,
    "response_format.json_schema.schema": "a JSON schema",
    "response_format.json_schema.strict": _BOOL,
    "structured_outputs": "an object with one of json, regex, choice, grammar",
    "structured_outputs.json": "a JSON schema or the text of one",
    "structured_outputs.regex": f"a string of 1 to {MAX_REGEX_BYTES} characters",
    "structured_outputs.choice": f"a list of 1 to {MAX_ALTERNATIVES} strings, each of 1 to "
    f"{MAX_ALTERNATIVE_CHARS} characters",
    "structured_outputs.grammar": f"a string of 1 to {MAX_GRAMMAR_BYTES} characters",
    "truncate_prompt_tokens": "an integer of at least 1, or -1",
    "add_special_tokens": _BOOL,
    "skip_special_tokens": _BOOL,
    "spaces_between_special_tokens": _BOOL,
    "return_token_ids": _BOOL,
    "return_tokens_as_token_ids": _BOOL,
    "cache_salt": f"a string of 1 to {MAX_SALT_CHARS} characters",
    "priority": "a 32-bit integer",
    "request_id": f"1 to {MAX_REQUEST_ID_CHARS} of the characters A-Z a-z 0-9 . _ : -",
}

# known, not supported: null only; with what to use instead
NOT_SUPPORTED = {
    "suffix": "",
    "prompt_embeds": "",
    "logits_processors": "",
    "chat_template": "",
    "guided_json": "structured_outputs.json",
    "guided_regex": "structured_outputs.regex",
    "guided_choice": "structured_outputs.choice",
    "guided_grammar": "structured_outputs.grammar",
}
