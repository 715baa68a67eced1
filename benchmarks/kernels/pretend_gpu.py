"""A GPU that is not there: real launchers run, and each of their launches is compiled instead.

Tensors have shapes, strides and dtypes but no memory (torch's meta device) and say that they are on a
GPU. A launch reaches Triton with the very arguments that serving would pass, so what is compiled is
specialised as serving's is: alignment of pointers, sizes that 16 divides, sizes that are 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from benchmarks.kernels.targets import Target

_GPU = torch.device("cuda", 0)
_ALIGNED = 1 << 20  # torch's allocator aligns to 512 bytes

# Called for each launch with the kernel's name and what Triton made of it, or the exception.
OnLaunch = Callable[[str, Any], None]


class _Driver:
    """The little of a Triton driver that compiling asks for."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class _Pointer:
    """A tensor as Triton sees it: a dtype, an address, and (AMD) how far offsets reach."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype = tensor.dtype
        self._address = _ALIGNED + int(tensor.storage_offset()) * tensor.element_size()
        self._num_bytes = tensor.untyped_storage().nbytes()

    def data_ptr(self) -> int:
        return self._address

    def ptr_range(self) -> int:
        return self._num_bytes


class _OnGpu(TorchFunctionMode):
    """What is asked for on the GPU is made on the meta device, and says that it is on the GPU."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # Getters are compared with ==: every access makes a new wrapper around the same slot.
        if func == Tensor.device.__get__ and args[0].is_meta:
            return _GPU
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return args[0].is_meta
        kwargs = {name: _to_meta(name, value) for name, value in (kwargs or {}).items()}
        return func(*(_to_meta("", value) for value in args), **kwargs)


def _to_meta(name: str, value: Any) -> Any:
    if name == "device" and value is not None:
        value = torch.device(value)
    is_gpu = isinstance(value, torch.device) and value.type == "cuda"
    return torch.device("meta") if is_gpu else value


@contextmanager
def pretend_gpu(target: Target, on_launch: OnLaunch) -> Iterator[None]:
    """One target a process: Triton and the launchers cache what they were once told of the device."""

    def compile_instead(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        args = tuple(_as_pointer(value) for value in args)
        kwargs = {name: _as_pointer(value) for name, value in kwargs.items()}
        try:
            outcome = run(self, *args, grid=grid, warmup=True, **kwargs)
        except Exception as error:  # the launcher's next launch shall be compiled too
            outcome = error
        on_launch(self.fn.__name__, outcome)

    run = JITFunction.run
    with ExitStack() as stack:
        for where, name, value in _facts(target):
            stack.enter_context(patch.object(where, name, value))
        stack.enter_context(patch.object(JITFunction, "run", compile_instead))
        stack.enter_context(_OnGpu())
        driver.set_active(_Driver(target.gpu))
        yield


def _as_pointer(value: Any) -> Any:
    return _Pointer(value) if isinstance(value, Tensor) else value


def _facts(target: Target) -> Iterator[tuple[Any, str, Any]]:
    """What launchers may ask torch about the device."""
    major, minor = target.capability
    properties = SimpleNamespace(
        major=major, minor=minor, multi_processor_count=target.num_sms, name=target.name
    )
    yield torch.cuda, "is_available", lambda: True
    yield torch.cuda, "device_count", lambda: 1
    yield torch.cuda, "current_device", lambda: 0
    yield torch.cuda, "get_device_capability", lambda device=None: target.capability
    yield torch.cuda, "get_device_properties", lambda device=None: properties
    yield torch.version, "hip", None if target.is_nvidia else "7.0"
