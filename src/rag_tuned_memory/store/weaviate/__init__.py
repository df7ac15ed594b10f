"""Episodes on a Weaviate server (extra ``weaviate``)."""

from rag_tuned_memory.store.weaviate.address import Address, parse_address
from rag_tuned_memory.store.weaviate.store import WeaviateStore

__all__ = ["Address", "WeaviateStore", "parse_address"]
