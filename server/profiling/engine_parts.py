"""What is timed in an engine process, by the names under which each caller looks the next one up."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from server.engine.engine import Engine
from server.engine.loop import EngineLoop
from server.engine.scheduler import Scheduler
from server.engine.speculation import Speculation
from server.engine.token_masks import TokenMasks
from server.ipc.server import EngineServer
from server.profiling.parts import Part
from server.profiling.recorder import Patch, offer
from server.profiling.ring import SpanRing

_ROLES = {
    "c_attn": Part.QKV,
    "attn_c_proj": Part.PROJ,
    "c_fc": Part.FC,
    "mlp_c_proj": Part.OUT,
}  # by the names of a layer's fields
_KERNELS = {
    "embed": Part.EMBED,
    "layer_norm": Part.NORM,
    "write_kv": Part.KV_WRITE,
    "paged_attention": Part.ATTENTION,
    "prefill_attention": Part.PROMPT_ATTENTION,
}


def offer_profile(fd: int) -> None:
    """To be called when everything is loaded: what is not imported by then is not used either."""
    offer(SpanRing(fd), engine_patches())


def engine_patches() -> list[Patch]:
    modules = sys.modules
    patches = [
        Patch(EngineLoop, "turn", Part.TURN),
        Patch(EngineServer, "poll", Part.POLL, part_of=_poll_or_idle),
        Patch(EngineServer, "_read", Part.RECEIVE),
        Patch(EngineLoop, "_apply", Part.SUBMIT),
        Patch(Engine, "step", Part.ENGINE),
        Patch(TokenMasks, "take", Part.MASKS),
        Patch(TokenMasks, "advance", Part.MASKS),
        Patch(Scheduler, "schedule", Part.SCHEDULE),
        Patch(Speculation, "draft", Part.DRAFTS),
        Patch(Engine, "_collect", Part.COLLECT),
        Patch(EngineLoop, "_send", Part.FRAME),
        Patch(EngineServer, "send", Part.ENCODE),
        Patch(EngineServer, "_write", Part.SEND),
    ]
    if (runner := modules.get("server.runner.cpu_runner")) is not None:
        patches += _cpu_runner_patches(runner)
    if (gpt := modules.get("server.model.gpt")) is not None:
        patches += gpt_patches(gpt)
    if (gpu_runner := modules.get("server.runner.gpu.runner")) is not None:
        patches += _gpu_patches(gpu_runner)
    return patches


def _poll_or_idle(args: tuple[Any, ...]) -> int:
    """`poll(timeout_s)`: there is a step to run, or there is nothing to do."""
    return Part.IDLE if args[-1] > 0 else Part.POLL


def _cpu_runner_patches(module: Any) -> list[Patch]:
    runner = module.CpuRunner
    return [
        Patch(runner, "dispatch", Part.RUNNER),
        Patch(runner, "_fill", Part.INPUTS),
        Patch(module, "step_of", Part.INPUTS, note_of=_note_of_step),
        Patch(runner, "_draw", Part.SAMPLING),
        Patch(module, "logprobs", Part.LOGPROBS),
    ]


def gpt_patches(module: ModuleType) -> list[Patch]:
    """A kernel that the forward pass does not call by such a name counts as the model's rest."""
    gpt = vars(module)["GPT"]
    roles: dict[int, int] = {}

    def part_of_model(args: tuple[Any, ...]) -> int:
        if not roles:
            roles.update(_roles_of(args[0]))
        return Part.MODEL

    def part_of_linear(args: tuple[Any, ...]) -> int:
        return roles.get(id(args[1]), Part.LINEAR)

    return [
        Patch(gpt, "forward", Part.MODEL, part_of=part_of_model),
        Patch(gpt, "_is_short", Part.MODEL, instead=_never),  # one call has no parts
        Patch(gpt, "logits", Part.HEAD),
        Patch(module, "linear", Part.LINEAR, part_of=part_of_linear),
        *(Patch(module, name, part) for name, part in _KERNELS.items()),
    ]


def _never(*_: object) -> bool:
    return False


def _roles_of(model: Any) -> dict[int, int]:
    """By the id of the weights, which live as long as the process."""
    head = getattr(model, "_lm_head", None)
    roles: dict[int, int] = {id(head): Part.HEAD}
    for layer in getattr(model, "_layers", ()):
        for name, part in _ROLES.items():
            weights = getattr(layer, name, None)
            if weights is not None:
                roles[id(weights)] = part
    return roles


def _gpu_patches(module: Any) -> list[Patch]:
    """Launches are the host's time; what the GPU does meanwhile is seen as waiting for it."""
    patches = [
        Patch(module.GpuRunner, "dispatch", Part.RUNNER),
        Patch(module, "cut_runs", Part.INPUTS, note_of=note_of_runs),
    ]
    if (step := sys.modules.get("server.runner.gpu.step")) is not None:
        patches.append(Patch(vars(step)["GpuStep"], "result", Part.GPU_WAIT))
    return patches


_ROWS_BITS = 24


def note_of_runs(runs: Any) -> int:
    """How many token rows the step has, and how many of them are a prompt's."""
    return int(runs.num_prefill_tokens) << _ROWS_BITS | int(runs.num_tokens)


def _note_of_step(step: tuple[Any, Any]) -> int:
    return note_of_runs(step[0])
