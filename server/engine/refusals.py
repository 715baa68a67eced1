"""What an engine does not take: the api has checked it all, but perhaps for another engine. Raises
RequestError."""

from __future__ import annotations

from server.engine.block_manager import BlockManager
from server.engine.sequence_state import SequenceState
from server.errors import ContextLengthError, RequestError
from server.sequence import SequenceRequest


def refuse_strange_ids(request: SequenceRequest, vocab_size: int) -> None:
    params = request.params
    for ids, name in (
        (request.prompt_ids, "prompt"),
        (request.emitted_ids, "emitted_ids"),
        (params.allowed_token_ids, "allowed_token_ids"),
        *((word, "bad_words") for word in params.bad_words),
    ):
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            raise RequestError(f"Token ids are at least 0 and below {vocab_size}.", param=name)


def refuse_endless(seq: SequenceState, blocks: BlockManager, max_model_len: int) -> None:
    """What could never be finished."""
    params = seq.params
    if not seq.token_ids:
        raise RequestError("A prompt needs at least one token.", param="prompt")
    if seq.num_prompt_tokens + min(params.max_tokens, 1) > max_model_len:
        raise ContextLengthError(max_model_len, seq.num_prompt_tokens, params.max_tokens)
    if blocks.blocks_for(seq.max_num_slots) > blocks.num_blocks:
        raise RequestError(
            f"The prompt and max_tokens need {seq.max_num_slots} tokens of KV cache; all of it is "
            f"{blocks.num_blocks * blocks.block_size}.",
            param="max_tokens",
        )
    if len(seq.token_ids) > seq.num_prompt_tokens and seq.is_beyond_its_end:
        raise RequestError("The emitted ids leave nothing to generate.", param="emitted_ids")
