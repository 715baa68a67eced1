"""Which full KV block holds which tokens after which prefix. Names blocks; never counts references.

A block's key is its prefix's link, the number of its prompt tokens (prompt ones come first, so this
gives every token's kind) and its token ids. The chain begins with the tenant and its salt: how fast a
prompt is answered tells nobody what another tenant has sent. Keys are compared
as whole bytes and a link is a serial number that is never used again, so a hit has equal tokens from
the first on: no hash is trusted, and Python's keyed hash of bytes gives an attacker no collisions.

Evicting a block hides those registered behind it until they are evicted too. Blocks are freed last
block first, so this is rare.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from server.engine.sequence_state import SequenceState


class Match(NamedTuple):
    """The longest cached prefix of a sequence."""

    block_ids: list[int]
    link: bytes


class PrefixCache:
    """Blocks of `block_size` (at most 255) tokens by content. At most one block per content."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._entries: dict[bytes, tuple[int, bytes]] = {}  # key -> block id, link of what follows
        self._keys: dict[int, bytes] = {}  # block id -> key
        self._num_links = 0
        self._pack = Struct(f"<B{block_size}I").pack

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def match(self, seq: SequenceState) -> Match:
        """Never the block of the last token: its row must be computed, in a block of its own, because
        the next token is drawn from it. So a first token is always drawn from a prompt row."""
        link = _root(seq)
        block_ids: list[int] = []
        max_num_hits = (seq.num_tokens - 1) // self.block_size if seq.can_read_cache else 0
        for index in range(max_num_hits):
            entry = self._entries.get(self._key(seq, index, link))
            if entry is None:
                break
            block_id, link = entry
            block_ids.append(block_id)
        return Match(block_ids, link)

    def register(self, seq: SequenceState) -> None:
        """Make the blocks known that are computed, as far as the ids have arrived. Whoever calls it
        dispatches the step that fills them or has done so: rows of that very step may read them, since K
        and V are written first."""
        num_known = min(seq.num_computed_tokens, len(seq.token_ids))
        for index in range(seq.num_registered_blocks, num_known // self.block_size):
            key = self._key(seq, index, seq.link)
            entry = self._entries.get(key)
            if entry is None:
                block_id = seq.block_table[index]
                entry = self._entries[key] = (block_id, self._new_link())
                self._keys[block_id] = key
            seq.link = entry[1]
            seq.num_registered_blocks = index + 1

    def forget(self, block_id: int) -> None:
        """The block is about to be overwritten."""
        del self._entries[self._keys.pop(block_id)]

    def forget_all(self, seq: SequenceState) -> list[int]:
        """The blocks with its content, whoever computed them. Those behind an evicted one are not found by
        anybody."""
        link = _root(seq)
        block_ids: list[int] = []
        for index in range(len(seq.token_ids) // self.block_size):
            key = self._key(seq, index, link)
            if key not in self._entries:
                break
            block_id, link = self._entries.pop(key)
            del self._keys[block_id]
            block_ids.append(block_id)
        return block_ids

    def _new_link(self) -> bytes:
        self._num_links += 1
        return b"\1" + self._num_links.to_bytes(8, "little")  # the tag keeps it apart from a salt

    def _key(self, seq: SequenceState, index: int, link: bytes) -> bytes:
        start = index * self.block_size
        num_prompt_tokens = min(max(seq.num_prompt_tokens - start, 0), self.block_size)
        block = seq.token_ids[start : start + self.block_size]
        return link + self._pack(num_prompt_tokens, *block)

    def check_integrity(self) -> None:
        assert len(self._entries) == len(self._keys)
        for block_id, key in self._keys.items():
            assert self._entries[key][0] == block_id


def _root(seq: SequenceState) -> bytes:
    """Of this tenant and salt only: the length in front tells where the one ends and the other begins."""
    tenant = seq.tenant_name.encode("utf-8", "surrogatepass")
    salt = seq.cache_salt.encode("utf-8", "surrogatepass")
    return b"\0" + len(tenant).to_bytes(4, "little") + tenant + salt
