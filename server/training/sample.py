"""Text drawn from a model, for its card. Plain and slow: the whole sequence is computed again for
every token.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from server.training.bpe import end_of_text_id
from server.training.model import GPT


def sample_text(
    model: GPT, tokenizer: Tokenizer, prompt: str, max_tokens: int, temperature: float, seed: int
) -> str:
    """Prompt and continuation, until end-of-text, `max_tokens` or the context's end. An empty
    prompt starts from end-of-text, as a document does.
    """
    generator = torch.Generator().manual_seed(seed)
    separator = end_of_text_id(tokenizer)
    ids = tokenizer.encode(prompt).ids or [separator]
    length = min(len(ids) + max_tokens, model.shape.context)
    with torch.no_grad():
        while len(ids) < length:
            logits = model(torch.tensor([ids]))[0, -1]
            chances = torch.softmax(logits.float() / temperature, dim=-1)
            token = int(torch.multinomial(chances, 1, generator=generator))
            if token == separator:
                break
            ids.append(token)
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text
