"""The collections: trajectories, passages (one collection an embedder), and small values.

Nothing is left to AutoSchema. Identifiers and filters are tokenized as whole fields; the only searched property holds
terms that are made here (see ``analysis``), so no tokenizer cuts an id and no stop word is a trap.
"""

from __future__ import annotations

from typing import Any

from weaviate.classes.config import Configure, DataType, Property, StopwordsPreset, Tokenization

from rag_tuned_memory.store.weaviate.address import Address, Index

TRAJECTORIES, PASSAGES, VALUES = "Trajectories", "Passages", "Values"
VECTOR = "passage"
"""The named vector; whose it is says the collection's name."""


def trajectories(address: Address) -> dict[str, Any]:
    """Arguments of ``collections.create`` for the raw records."""
    return _collection(
        address,
        "Trajectories as they were recorded; each names the generation of its passages.",
        [
            _name("trajectory_id"),
            _name("generation"),
            _name("source"),
            _plain("namespace"),
            _plain("content_hash"),
            _number("sequence"),
            _number("time"),
            Property(name="success", data_type=DataType.BOOL, index_searchable=False),
            _number("passages"),
            _number("recorded_at"),
            _number("bytes"),
            _plain("goal"),
            _plain("outcome"),
            _plain("json"),
        ],
    )


def passages(address: Address, embedder: str) -> dict[str, Any]:
    """As ``trajectories``, for the passages with vectors of ``embedder`` (its identity as JSON)."""
    settings = _collection(
        address,
        embedder,
        [
            _name("trajectory_id"),
            _name("generation"),
            _name("source"),
            _name("tool"),
            _name("kind"),
            Property(name="success", data_type=DataType.BOOL, index_searchable=False),
            _number("time"),
            _number("step"),
            _number("chunk"),
            _number("bytes"),
            Property(
                name="terms",
                data_type=DataType.TEXT,
                tokenization=Tokenization.WHITESPACE,
                index_filterable=True,
                index_searchable=True,
            ),
            _plain("payload"),
        ],
    )
    vector = Configure.Vectors.self_provided(name=VECTOR, vector_index_config=_index(address.index))
    return settings | {"vector_config": [vector]}


def values(address: Address) -> dict[str, Any]:
    """As ``trajectories``, for the small values of namespaces; it has no tenants, because a namespace may have values
    before it has an episode."""
    settings = _collection(
        address,
        "Small values kept beside the episodes.",
        [_name("namespace"), _name("key"), _plain("value")],
    )
    return settings | {"multi_tenancy_config": Configure.multi_tenancy(enabled=False)}


def _collection(address: Address, description: str, properties: list[Property]) -> dict[str, Any]:
    return {
        "description": description,
        "properties": properties,
        "multi_tenancy_config": Configure.multi_tenancy(
            enabled=True, auto_tenant_creation=True, auto_tenant_activation=True
        ),
        "replication_config": Configure.replication(factor=address.replicas),
        "inverted_index_config": Configure.inverted_index(
            bm25_b=0.75, bm25_k1=1.2, stopwords_preset=StopwordsPreset.NONE
        ),
        "vector_config": Configure.Vectors.self_provided(vector_index_config=Configure.VectorIndex.flat()),
    }


def _name(name: str) -> Property:
    """A text that is only ever compared as a whole."""
    return Property(
        name=name,
        data_type=DataType.TEXT,
        tokenization=Tokenization.FIELD,
        index_filterable=True,
        index_searchable=False,
    )


def _number(name: str) -> Property:
    """A whole number that is compared or summed up; up to 2**53, as the wire carries it."""
    return Property(
        name=name,
        data_type=DataType.INT,
        index_filterable=True,
        index_range_filters=True,
        index_searchable=False,
    )


def _plain(name: str) -> Property:
    """A text that is only read."""
    return Property(name=name, data_type=DataType.TEXT, index_filterable=False, index_searchable=False)


def _index(index: Index) -> Any:
    quantizer = Configure.VectorIndex.Quantizer.rq() if index.endswith("-rq") else None
    if index == "dynamic":
        return Configure.VectorIndex.dynamic()
    make = Configure.VectorIndex.flat if index.startswith("flat") else Configure.VectorIndex.hnsw
    return make(quantizer=quantizer)
