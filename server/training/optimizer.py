"""Optimisers and their state as named tensors. `muon`: Muon (Jordan et al., 2024; torch.optim.Muon)
for the hidden matrices, AdamW for embeddings, norms and biases. `adamw`: AdamW for everything.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from server.training.config import TrainConfig
from server.training.model import GPT

BETAS = (0.9, 0.95)


def build_optimizers(model: GPT, config: TrainConfig) -> list[Optimizer]:
    matrices, vectors, hidden = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            vectors.append(parameter)
        elif name.startswith("h.") and config.optimizer == "muon":
            hidden.append(parameter)
        else:
            matrices.append(parameter)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizers: list[Optimizer] = [torch.optim.AdamW(groups, lr=config.lr, betas=BETAS, fused=True)]
    if hidden:
        # match_rms_adamw scales Muon's updates to AdamW's size, so that both share one learning rate.
        muon = torch.optim.Muon(
            hidden,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        )
        optimizers.append(muon)
    return optimizers


def set_lr(optimizers: list[Optimizer], lr: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def state_tensors(model: GPT, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """Every tensor of the optimisers' state as `parameter name|state key`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}|{key}": value.detach()
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_state_tensors(model: GPT, optimizers: list[Optimizer], tensors: dict[str, Tensor]) -> None:
    """Puts back what `state_tensors` gave. Raises KeyError for an unknown parameter."""
    parameters = dict(model.named_parameters())
    owners = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    for full_name, value in tensors.items():
        name, key = full_name.split("|")
        parameter = parameters[name]
        # AdamW counts its steps in a tensor of its own, fp32 on the CPU unless fused on a GPU.
        state = owners[parameter].state[parameter]
        state[key] = value.clone().to(parameter.device)
