"""A prompt as its choices show it (echo): its text, and where in it each token stands."""

from __future__ import annotations

from collections.abc import Iterator

from server.api.reply.logprobs import LogprobsBuilder
from server.api.reply.prompt_logprobs import PromptLogprobsCollector
from server.sequence import TokenLogprobs
from server.tokenizer import StreamDecoder, Tokenizer


class PromptView:
    """Shared by all choices of one prompt; read only where it is echoed."""

    def __init__(
        self, token_ids: list[int], tokenizer: Tokenizer, *, shows_special: bool = False
    ) -> None:
        self.token_ids = token_ids
        self.logprobs = PromptLogprobsCollector()
        self._tokenizer = tokenizer
        self._shows_special = shows_special
        self._text: str | None = None
        self._pending = b""

    @property
    def text(self) -> str:
        """All whole characters; `decoder` goes on behind them."""
        if self._text is None:
            decoder = self._new_decoder()
            self._text = "".join(map(decoder.feed, self.token_ids))
            self._pending = decoder.pending
        return self._text

    def decoder(self) -> StreamDecoder:
        """For the text that is generated behind the echoed one."""
        assert self._text is not None
        return self._new_decoder(self._pending)

    def offsets(self) -> Iterator[int]:
        """Characters before each token's first one."""
        decoder = self._new_decoder()
        num_chars = 0
        for token_id in self.token_ids:
            yield num_chars + decoder.num_chars_before(token_id)
            num_chars += len(decoder.feed(token_id))

    @property
    def has_all_logprobs(self) -> bool:
        return self.logprobs.num_rows == len(self.token_ids) - 1

    def rows(self, num_top: int) -> Iterator[tuple[int, TokenLogprobs | None]]:
        """Each token with its logprobs; nothing predicts the first one."""
        if not self.has_all_logprobs:
            raise ValueError("the engine did not send all prompt logprobs")
        ids = iter(self.token_ids)
        yield next(ids), None
        yield from zip(ids, self.logprobs.rows(num_top), strict=True)

    def fill(self, builder: LogprobsBuilder, num_top: int) -> None:
        """The entries of all its tokens, for the first chunk of a stream."""
        offsets = self.offsets()
        for (token_id, entry), offset in zip(self.rows(num_top), offsets, strict=True):
            builder.add(token_id, entry, offset)

    def _new_decoder(self, pending: bytes = b"") -> StreamDecoder:
        return StreamDecoder(self._tokenizer, shows_special=self._shows_special, pending=pending)
