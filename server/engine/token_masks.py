"""Which ids each sequence may draw next: allowed_token_ids, bad_words and a grammar in one bit mask.
Knows ids, not what they spell: a grammar's masks come from a `GrammarMasks`.

    fixed    allowed_token_ids and bad words of one id: made once
    gated    a grammar or a longer bad word: made anew behind each token, once the token is known
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from server.engine.sequence_state import SequenceState
from server.faults import log_fault
from server.grammar.seam import GrammarMasks
from server.sequence import FailureKind, SamplingParams


class Verdicts(NamedTuple):
    """What became known of gated sequences."""

    ready: list[SequenceState]
    failed: list[tuple[SequenceState, FailureKind]]


@dataclass(slots=True, eq=False)
class _Gate:
    seq: SequenceState
    key: int
    fixed: int  # a bit set, as all that is combined
    bad_words: tuple[tuple[int, ...], ...]  # of more than one id
    is_grammar_alone: bool


class TokenMasks:
    """The masks of all sequences of an engine. Sets `SequenceState.allowed`; the scheduler obeys it."""

    def __init__(
        self, vocab_size: int, no_tokens: Iterable[int], grammars: GrammarMasks | None
    ) -> None:
        self._num_bytes = -(-vocab_size // 32) * 4
        self._all = ((1 << vocab_size) - 1) & ~_bits(no_tokens)
        self._grammars = grammars
        self._nothing = bytes(self._num_bytes)
        self._num_keys = 0
        self._gates: dict[SequenceState, _Gate] = {}
        self._by_key: dict[int, _Gate] = {}
        self._waiting: set[int] = set()  # keys that a grammar owes a reply
        self._known: list[_Gate] = []  # without a grammar, and all its ids are here or about to be
        self._last_fixed: tuple[object, int] = (None, 0)

    @property
    def num_waiting(self) -> int:
        """Sequences that cannot go on before a grammar's reply."""
        return len(self._waiting)

    def open(self, seq: SequenceState) -> FailureKind | None:
        """Right after its submission: its mask, or `is_gated` and the mask comes later, or why it fails."""
        params, grammar = seq.params, seq.grammar
        if params.max_tokens == 0:
            return None
        fixed = self._fixed(params)
        if not _leaves_something(fixed, seq):
            return "no_token_allowed"
        bad_words = tuple(word for word in params.bad_words if len(word) > 1)
        if grammar is None and not bad_words:
            seq.allowed = None if fixed == self._all else self._to_bytes(fixed)
            return None
        is_grammar_alone = fixed == self._all and not bad_words and params.min_tokens == 0
        gate = _Gate(seq, self._num_keys, fixed, bad_words, is_grammar_alone)
        self._num_keys += 1
        self._gates[seq] = self._by_key[gate.key] = gate
        seq.is_gated = True
        if grammar is None:
            self._known.append(gate)
            return None
        if self._grammars is None:
            return "internal"
        self._waiting.add(gate.key)
        try:
            self._grammars.open(gate.key, grammar, seq.token_ids[seq.num_prompt_tokens :])
        except OSError as error:
            log_fault("a grammar process could not be started", error)
            return "internal"
        return None

    def advance(self, drawn: list[tuple[SequenceState, int]]) -> None:
        """Gated sequences, and what each drew and goes on from. Its ids are read in `take` only."""
        to_grammars: list[tuple[int, int]] = []
        for seq, token_id in drawn:
            gate = self._gates[seq]
            if seq.grammar is None:
                self._known.append(gate)
            else:
                to_grammars.append((gate.key, token_id))
                self._waiting.add(gate.key)
        if to_grammars and self._grammars is not None:
            self._grammars.advance(to_grammars)

    def close(self, seq: SequenceState) -> None:
        """It has ended. A no-op for one without a gate."""
        gate = self._gates.pop(seq, None)
        if gate is None:
            return
        del self._by_key[gate.key]
        self._waiting.discard(gate.key)
        if seq.grammar is not None and self._grammars is not None:
            self._grammars.close(gate.key)

    def take(self) -> Verdicts | None:
        """Between two steps: whose next token may be drawn now. None: nothing is new."""
        replies = self._grammars.replies() if self._grammars is not None else ()
        if not replies and not self._known:
            return None
        verdicts = Verdicts([], [])
        known, self._known = self._known, []
        for gate in known:
            self._judge(gate, None, verdicts)
        for key, reply in replies:
            gate_of_key = self._by_key.get(key)
            if gate_of_key is not None:  # else it was closed meanwhile
                self._waiting.discard(key)
                self._judge(gate_of_key, reply, verdicts)
        return verdicts

    def _judge(self, gate: _Gate, reply: bytes | FailureKind | None, verdicts: Verdicts) -> None:
        """A fault in here is this sequence's and nobody else's."""
        seq = gate.seq
        if seq.has_ended:
            return
        if isinstance(reply, str):
            verdicts.failed.append((seq, reply))
            return
        try:
            allowed = self._combined(gate, reply)
        except Exception as error:
            log_fault("the mask of a sequence could not be made", error)
            verdicts.failed.append((seq, "internal"))
            return
        if allowed is None:
            verdicts.failed.append((seq, "no_token_allowed"))
        else:
            seq.allowed = allowed
            verdicts.ready.append(seq)

    def _combined(self, gate: _Gate, reply: bytes | None) -> bytes | None:
        """None: nothing is left."""
        allowed = gate.fixed
        if reply is not None:
            if len(reply) != self._num_bytes:
                raise ValueError(f"a mask of {len(reply)} bytes instead of {self._num_bytes}")
            if gate.is_grammar_alone:  # nearly every time: nothing to combine
                return None if reply == self._nothing else reply
            allowed &= int.from_bytes(reply, "little")
        if gate.bad_words:
            allowed &= ~_bits(_ends_of_bad_words(gate))
        return self._to_bytes(allowed) if _leaves_something(allowed, gate.seq) else None

    def _fixed(self, params: SamplingParams) -> int:
        """What does not depend on what was drawn. Siblings come one after the other, so the last result
        is kept."""
        if params.allowed_token_ids is None and not params.bad_words:
            return self._all
        asked = (params.allowed_token_ids, params.bad_words)
        if asked != self._last_fixed[0]:
            ids = params.allowed_token_ids
            fixed = self._all if ids is None else self._all & _bits(ids)
            fixed &= ~_bits(word[0] for word in params.bad_words if len(word) == 1)
            self._last_fixed = (asked, fixed)
        return self._last_fixed[1]

    def _to_bytes(self, bits: int) -> bytes:
        return bits.to_bytes(self._num_bytes, "little")


def _ends_of_bad_words(gate: _Gate) -> list[int]:
    """The last ids of those whose other ids were just generated."""
    seq = gate.seq
    start = max(seq.num_prompt_tokens, len(seq.token_ids) - max(map(len, gate.bad_words)) + 1)
    tail = tuple(seq.token_ids[start:])
    return [
        word[-1]
        for word in gate.bad_words
        if len(word) <= len(tail) + 1 and tail[len(tail) - len(word) + 1 :] == word[:-1]
    ]


def _leaves_something(allowed: int, seq: SequenceState) -> bool:
    """Also with the end ids banned, as they are below min_tokens."""
    params = seq.params
    if len(seq.token_ids) - seq.num_prompt_tokens < params.min_tokens:
        end = () if params.eos_token_id is None else (params.eos_token_id,)
        ends = (*params.stop_token_ids, *end)
        num_ids = allowed.bit_length()  # stop ids may be any number
        allowed &= ~_bits(token_id for token_id in ends if 0 <= token_id < num_ids)
    return bool(allowed)


def _bits(token_ids: Iterable[int]) -> int:
    """A set of ids as an integer: as quick as bytes for and, or, not."""
    ids = list(token_ids)
    if not ids:
        return 0
    found = bytearray(max(ids) // 8 + 1)
    for token_id in ids:
        found[token_id >> 3] |= 1 << (token_id & 7)
    return int.from_bytes(found, "little")
