"""Finding again what was recorded: candidates, fusion, neighbours, budget, and the fenced text for a prompt."""

from rag_tuned_memory.recall.budget import CountTokens, estimate_tokens
from rag_tuned_memory.recall.engine import Indexed, Recall
from rag_tuned_memory.recall.fusion import Weights
from rag_tuned_memory.recall.passages import build_passages
from rag_tuned_memory.recall.prompt import assemble, has_injected, strip_injected
from rag_tuned_memory.recall.recollection import Recalled, RecalledEpisode, Recollection, Signals

__all__ = [
    "CountTokens",
    "Indexed",
    "Recall",
    "Recalled",
    "RecalledEpisode",
    "Recollection",
    "Signals",
    "Weights",
    "assemble",
    "build_passages",
    "estimate_tokens",
    "has_injected",
    "strip_injected",
]
