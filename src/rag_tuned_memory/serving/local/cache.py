"""Caches of keys and values whose rows come and go: two joined to one, rows and empty columns taken out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def mixes(cache: Any) -> bool:
    """Whether rows of different length can meet in this cache: it holds all keys and values, and nothing else.

    A sliding window or a recurrent state has no left side to pad.
    """
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in cache.layers)


def join_caches(cache: Any, other: Any) -> None:
    """Put the other's rows below this cache's; the shorter one is padded on the left. Both must have been filled."""
    import torch

    width = max(cache.get_seq_length(), other.get_seq_length())
    for mine, its in zip(cache.layers, other.layers, strict=True):
        mine.keys = torch.cat([_padded(mine.keys, width), _padded(its.keys, width)])
        mine.values = torch.cat([_padded(mine.values, width), _padded(its.values, width)])


def _padded(states: torch.Tensor, width: int) -> torch.Tensor:
    """``(rows, heads, width, dimension)``, zeros on the left."""
    from torch.nn.functional import pad

    return pad(states, (0, 0, width - states.shape[-2], 0))


def keep_rows(cache: Any, rows: torch.Tensor, *, drop: int) -> None:
    """Only these rows, without the first ``drop`` columns."""
    cache.batch_select_indices(rows)
    if drop:
        for layer in cache.layers:
            layer.keys = layer.keys[:, :, drop:]
            layer.values = layer.values[:, :, drop:]
