"""Whether weights hold a NaN or an infinity, at the speed of memory. Knows nothing of files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

# With all bits of the exponent set a float is no number. As integers of its own bits such floats are the
# largest: among positive ones when signed, among negative ones when unsigned. So two maxima find them, where
# a sum would overflow on its own, and torch.isfinite writes a mask as long as the tensor.
_KINDS: dict[torch.dtype, tuple[Any, Any, int, int]] = {
    torch.float32: (np.int32, np.uint32, 0x7F800000, 0xFF800000),
    torch.bfloat16: (np.int16, np.uint16, 0x7F80, 0xFF80),
    torch.float16: (np.int16, np.uint16, 0x7C00, 0xFC00),
}


def has_not_finite(data: np.ndarray[Any, np.dtype[np.uint8]], dtype: torch.dtype) -> bool:
    """Of the bytes of at least one fp32, bf16 or fp16 value; quickest while they are in the cache."""
    signed, unsigned, positive, negative = _KINDS[dtype]
    return bool(data.view(signed).max() >= positive or data.view(unsigned).max() >= negative)
