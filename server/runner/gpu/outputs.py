"""What steps draw, on its way to the host. Steps write one set of tensors, always the same, so that graphs
can; a copy of it on the device waits for the slower way back while the next step runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from server.runner.gpu.queue import Arrival, Queue
from server.runner.prompt_logprobs import MAX_TOP

_DEPTH = 3  # one being written, one on its way, one being read


@dataclass(frozen=True, slots=True)
class Drawn:
    """Rows [0, num_rows) are of sampled tokens, those from max_num_seqs on of prompt tokens."""

    token_ids: Tensor  # int64 [max_num_seqs]
    chosen: Tensor  # fp32 [max_num_seqs + max_num_prompt_rows]: the logprob of the token there
    ranks: Tensor  # int32 [as many]: its rank
    top_ids: Tensor  # int32 [as many, MAX_TOP]
    top_logprobs: Tensor  # fp32 [as many, MAX_TOP]

    @classmethod
    def on_device(cls, device: torch.device, num_rows: int, num_entries: int) -> Drawn:
        return cls(
            torch.zeros(num_rows, dtype=torch.int64, device=device),
            torch.zeros(num_entries, device=device),
            torch.zeros(num_entries, dtype=torch.int32, device=device),
            torch.zeros(num_entries, MAX_TOP, dtype=torch.int32, device=device),
            torch.zeros(num_entries, MAX_TOP, device=device),
        )

    @classmethod
    def on_host(cls, queue: Queue, num_rows: int, num_entries: int) -> Drawn:
        num_top = num_entries * MAX_TOP
        return cls(
            queue.host_buffer(num_rows, torch.int64),
            queue.host_buffer(num_entries, torch.float32),
            queue.host_buffer(num_entries, torch.int32),
            queue.host_buffer(num_top, torch.int32).view(-1, MAX_TOP),
            queue.host_buffer(num_top, torch.float32).view(-1, MAX_TOP),
        )

    def part(self, num_tokens: int, num_entries: int) -> list[Tensor]:
        return [
            self.token_ids[:num_tokens],
            self.chosen[:num_entries],
            self.ranks[:num_entries],
            self.top_ids[:num_entries],
            self.top_logprobs[:num_entries],
        ]


class Outputs:
    """`latest` is what the step that is being queued writes."""

    def __init__(self, queue: Queue, max_num_seqs: int, max_num_prompt_rows: int) -> None:
        sizes = max_num_seqs, max_num_seqs + max_num_prompt_rows
        self._queue = queue
        self.latest = Drawn.on_device(queue.device, *sizes)
        self._copies = [Drawn.on_device(queue.device, *sizes) for _ in range(_DEPTH)]
        self._hosts = [Drawn.on_host(queue, *sizes) for _ in range(_DEPTH)]
        self._turn = 0

    def send(self, num_tokens: int, num_entries: int) -> tuple[Drawn, Arrival]:
        """The first `num_tokens` ids and `num_entries` logprobs of `latest`, once they have arrived.

        Valid until two more have been sent.
        """
        turn, self._turn = self._turn, (self._turn + 1) % _DEPTH
        copies = self._copies[turn].part(num_tokens, num_entries)
        pairs = []
        for source, copy, host in zip(
            self.latest.part(num_tokens, num_entries),
            copies,
            self._hosts[turn].part(num_tokens, num_entries),
            strict=True,
        ):
            if len(source):
                copy.copy_(source)
                pairs.append((copy, host))
        return self._hosts[turn], self._queue.copy_back(pairs)
