"""Embedding: texts as vectors, with the identity of what made them."""

from rag_tuned_memory.embedding.base import Embedder, EmbedderIdentity, Vectors
from rag_tuned_memory.embedding.hashing import HashingEmbedder
from rag_tuned_memory.embedding.sentence import SentenceEmbedder
from rag_tuned_memory.models import locate, require
from rag_tuned_memory.settings import Settings

__all__ = ["Embedder", "EmbedderIdentity", "HashingEmbedder", "SentenceEmbedder", "Vectors", "open_embedder"]


def open_embedder(settings: Settings) -> Embedder:
    """The embedder that ``settings.embedder`` names: a model that was pulled, a folder, or ``hashing``.

    Nothing heavy is imported or loaded yet, but what would be missing later is missed now.

    Raises:
        MissingExtra: a model is named, and torch or transformers is not installed.
        ModelNotPulled: its weights are not on this machine.
        ModelError: no such model is known.
    """
    if settings.embedder == "hashing":
        return HashingEmbedder()
    require("torch")
    require("transformers")
    return SentenceEmbedder(locate(settings.embedder, settings.cache))
