"""What vLLM serves: the ranks that it can be started for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.serving.compatibility.problem import Problem

MAX_LORA_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` may be (vllm/config/lora.py, 0.32); 16 where it is not given."""


def least_max_lora_rank(rank: int) -> int | None:
    """The smallest ``--max-lora-rank`` that holds ``rank``, None if none does."""
    return next((one for one in MAX_LORA_RANKS if one >= rank), None)


def rank_problems(rank: int, max_lora_rank: int | None) -> Iterator[Problem]:
    """Problems with an adapter's rank; ``max_lora_rank`` is that of the server, None if it can still be chosen.

    Raises:
        InvalidInput: vLLM cannot be started with such a ``max_lora_rank``.
    """
    if max_lora_rank is not None and max_lora_rank not in MAX_LORA_RANKS:
        raise InvalidInput(
            f"vLLM cannot be started with --max-lora-rank {max_lora_rank}",
            place="max_lora_rank",
            remedy=f"It takes {', '.join(map(str, MAX_LORA_RANKS))}.",
        )
    if (least := least_max_lora_rank(rank)) is None:
        yield Problem(f"vLLM serves no rank above {MAX_LORA_RANKS[-1]}, and this is {rank}", "Train a smaller rank.")
    elif max_lora_rank is not None and rank > max_lora_rank:
        yield Problem(
            f"the adapter's rank {rank} is above the server's --max-lora-rank {max_lora_rank}",
            f"Start vLLM with --max-lora-rank {least}, or train a smaller rank.",
        )
