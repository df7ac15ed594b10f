"""Attention over a prefix that all rows of a batch share.

Many questions about one long context have thousands of tokens in common. Their keys and values are computed once and
never copied: each row attends to the one shared prefix and to its own cache. The function is registered with
transformers' attention interface; without a prefix it is exactly transformers' own SDPA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ATTENTION = "rag_tuned_memory_shared_prefix"


@dataclass
class PrefixCache:
    """Keys and values of one prefix: per layer ``(1, key-value heads, length, head dimension)``.

    The float32 copies serve single-token steps, where scores over thousands of keys lose too much in bfloat16.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    keys32: list[torch.Tensor]
    values32: list[torch.Tensor]

    @classmethod
    def of(cls, cache: Any) -> PrefixCache:
        """From a transformers cache that holds the prefix as its only row."""
        keys = [layer.keys for layer in cache.layers]
        values = [layer.values for layer in cache.layers]
        return cls(keys, values, [k[0].float() for k in keys], [v[0].float() for v in values])

    @property
    def length(self) -> int:
        """Number of tokens."""
        return int(self.keys[0].shape[-2])


def install(lm: PreTrainedModel) -> bool:
    """Let the model use shared prefixes; False where its attention is of another kind, or it fails a trial.

    The trial computes a few tokens with and without a shared prefix: a model that does not hand the prefix on to its
    attention function is found out here, not in its answers.
    """
    config = lm.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if lm.config._attn_implementation != "sdpa" or kinds != {"full_attention"}:
        return False
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return False
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    lm.set_attn_implementation(ATTENTION)
    if _trial(lm):
        return True
    lm.set_attn_implementation("sdpa")
    return False


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    shared_prefix: PrefixCache | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of ``query`` ``(rows, heads, new, dimension)``; returns ``(rows, new, heads, dimension)``."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if shared_prefix is None:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return plain
    if query.shape[2] == 1:
        return _step(module, query, key, value, attention_mask, shared_prefix, kwargs.get("scaling")), None
    return _prefill(module, query, key, value, attention_mask, shared_prefix, kwargs), None


def _prefill(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    prefix: PrefixCache,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Row by row with the prefix put before the row's own keys, so that only one row's copy exists at a time."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    new, total = query.shape[2], key.shape[2]
    if mask is None:
        mask = torch.ones(new, total, dtype=torch.bool, device=key.device).tril(total - new).expand(1, 1, -1, -1)
    seen = mask.new_ones(1, 1, new, prefix.length)
    outputs = []
    for row in range(query.shape[0]):
        own = slice(row, row + 1)
        row_mask = torch.cat([seen, mask[own] if mask.shape[0] > 1 else mask], -1)
        keys = torch.cat([prefix.keys[module.layer_idx], key[own]], 2)
        values = torch.cat([prefix.values[module.layer_idx], value[own]], 2)
        outputs.append(sdpa_attention_forward(module, query[own], keys, values, row_mask, **kwargs)[0])
    return torch.cat(outputs)


def _step(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    prefix: PrefixCache,
    scaling: float | None,
) -> torch.Tensor:
    """One token a row: the queries of all rows meet the shared keys in one product, and the softmax spans both parts.

    Query heads that share a key-value head are taken as further queries of it, as in grouped-query attention.
    """
    import torch

    rows, heads, _, size = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    scale = size**-0.5 if scaling is None else scaling
    queries = query.float().mul(scale).view(rows, kv_heads, group, size)
    own = queries @ key.float().transpose(-1, -2)
    if mask is not None:
        own = own.masked_fill(~mask, float("-inf"))
    together = queries.transpose(0, 1).reshape(kv_heads, rows * group, size)
    shared = together @ prefix.keys32[module.layer_idx].transpose(-1, -2)
    shared = shared.view(kv_heads, rows, group, -1).transpose(0, 1)
    weights = torch.cat([shared, own], -1).softmax(-1)
    shared, own = weights[..., : prefix.length], weights[..., prefix.length :]
    together = shared.transpose(0, 1).reshape(kv_heads, rows * group, -1) @ prefix.values32[module.layer_idx]
    output: torch.Tensor = together.view(kv_heads, rows, group, size).transpose(0, 1) + own @ value.float()
    return output.reshape(rows, 1, heads, size).to(query.dtype)


def _trial(lm: PreTrainedModel) -> bool:
    """Whether a shared prefix of eight tokens gives the logits of the whole text, as far as rounding allows.

    The measure is how far they are without the prefix: in bfloat16 two right ways to compute differ by a few percent
    of that.
    """
    import torch
    from transformers import DynamicCache

    def continued(prefix: PrefixCache | None) -> torch.Tensor:
        cache = DynamicCache(config=lm.config)
        shared = {} if prefix is None else {"shared_prefix": prefix}
        return torch.stack(
            [
                lm(
                    input_ids=ids[:, part],
                    position_ids=torch.arange(12, device=lm.device)[None, part],
                    past_key_values=cache,
                    logits_to_keep=1,
                    **shared,
                ).logits[0, -1]
                for part in (slice(8, 11), slice(11, 12))
            ]
        ).float()

    with torch.inference_mode():
        # From the middle of the vocabulary: its beginning is control tokens, on which a model behaves oddly.
        ids = torch.arange(12, device=lm.device)[None] + lm.config.get_text_config().vocab_size // 2
        expected = lm(input_ids=ids, logits_to_keep=2).logits[0].float()
        cache = DynamicCache(config=lm.config)
        lm(input_ids=ids[:, :8], past_key_values=cache, logits_to_keep=1)
        off = (continued(PrefixCache.of(cache)) - expected).abs().mean()
        off_without = (continued(None) - expected).abs().mean()
    return bool(off < 0.3 * off_without)
