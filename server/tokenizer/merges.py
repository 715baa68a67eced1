"""From listed merge pairs (Hugging Face) to an order of tokens (tiktoken), exactly.

Hugging Face joins the adjacent *pair* that stands first in its list. tiktoken joins the adjacent pair
whose *result* ranks first, even if that pair was never listed. Both give the same ids if a token is
ranked by the pair that makes it when its bytes are encoded alone, and tokens that their own bytes
do not lead to are left out. Why: suppose a pair (x, y) with x + y = t is adjacent in some text. No merge has
crossed t's borders so far, so what happened inside is what happens when t is encoded alone: the same
merges in the same order. That run passes through [x, y], hence (x, y) is its last pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

Pair = tuple[bytes, bytes]
_NEVER = 1 << 62


def mergeable_tokens(ranks: Mapping[Pair, int]) -> list[bytes]:
    """The 256 bytes and every token that merges can make, in the order that tiktoken needs."""
    last_ranks: dict[bytes, int] = {}
    for left, right in ranks:
        token = left + right
        if token not in last_ranks:
            last_ranks[token] = _last_rank(token, ranks)
    reachable = [token for token, rank in last_ranks.items() if rank >= 0]
    return [bytes([i]) for i in range(256)] + sorted(reachable, key=last_ranks.__getitem__)


def _last_rank(token: bytes, ranks: Mapping[Pair, int]) -> int:
    """The rank of the merge that makes `token` from its bytes; -1 if they end as something else."""
    parts = [token[i : i + 1] for i in range(len(token))]
    rank = -1
    while len(parts) > 1:
        pair_ranks = [ranks.get(pair, _NEVER) for pair in pairwise(parts)]
        rank = min(pair_ranks)
        if rank == _NEVER:
            return -1
        i = pair_ranks.index(rank)  # equal ranks: the leftmost
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return rank
