"""What a training is made of: frozen dataclasses, validated when built. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from server.training.errors import TrainingError

OPTIMIZERS = ("muon", "adamw")


@dataclass(frozen=True)
class ModelShape:
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    context: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise TrainingError(f"{name} must be at least 1, not {value}")
        if self.n_embd % self.n_head:
            raise TrainingError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")


@dataclass(frozen=True)
class TrainConfig:
    """The numbers of one run. `steps`, `warmup`, `decay`, `lr` may change on resume; the rest fixes
    the run.
    """

    n_layer: int = 6
    n_head: int = 4
    n_embd: int = 256
    vocab_size: int = 4096
    context: int = 512
    batch_size: int = 8
    steps: int = 5000
    lr: float = 3e-3
    optimizer: str = "muon"
    weight_decay: float = 0.1
    warmup: int = 100
    decay: float = 0.45
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.optimizer not in OPTIMIZERS:
            raise TrainingError(
                f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {self.optimizer!r}"
            )
        if not 0.0 <= self.decay <= 1.0:
            raise TrainingError(
                f"decay is the share of steps in which lr falls: 0 to 1, not {self.decay}"
            )
        if self.lr <= 0.0 or self.warmup < 0 or self.weight_decay < 0.0 or self.seed < 0:
            raise TrainingError(
                "lr must be positive; warmup, weight_decay and seed must not be negative"
            )
        self.shape()

    def shape(self) -> ModelShape:
        return ModelShape(self.vocab_size, self.n_layer, self.n_head, self.n_embd, self.context)

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.context


# A resumed run with another value in one of these would not be the same run.
FIXED_ON_RESUME = (
    "n_layer",
    "n_head",
    "n_embd",
    "vocab_size",
    "context",
    "batch_size",
    "optimizer",
    "seed",
)
