"""The type of numbers that a model computes with."""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@cache
def fastest_dtype(device: str) -> torch.dtype:
    """bfloat16 where it is the faster one, else float32.

    On GPUs that is what the hardware says. On CPUs it is measured, in some milliseconds: of two machines with the same
    bfloat16 instructions one is twice as fast with them and the other half as fast.
    """
    import torch

    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device != "cpu":
        return torch.float32

    def seconds(dtype: torch.dtype) -> float:
        one, other = torch.ones(256, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
        times = []
        for _ in range(6):
            start = time.perf_counter()
            torch.nn.functional.linear(one, other)
            times.append(time.perf_counter() - start)
        return min(times)

    return torch.bfloat16 if seconds(torch.bfloat16) < 0.9 * seconds(torch.float32) else torch.float32
