"""How namespaces, trajectories, passages and embedders are named in Weaviate."""

from __future__ import annotations

import hashlib
import json
import uuid

from rag_tuned_memory.embedding.base import EmbedderIdentity

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-")
_LONGEST_TENANT = 64
_OBJECTS = uuid.UUID("5c1f9f0a-5a0e-4f0e-9a53-0a6f6d1f6a57")
"""Namespace of the ids that this package gives to Weaviate's objects (RFC 9562, version 5)."""


def tenant(namespace: str) -> str:
    """The tenant of a namespace: another one for every other namespace, within Weaviate's alphabet.

    Lower-case letters, digits and hyphens stay, every other byte becomes ``_`` and two hexadecimal digits; capitals
    too, because tenants are folders and some file systems take ``ALICE`` for ``alice``. What is longer than 64
    characters then becomes ``_h`` and a hash; each trajectory says its namespace in full.
    """
    name = "".join(chr(byte) if byte in _PLAIN else f"_{byte:02x}" for byte in namespace.encode())
    if len(name) <= _LONGEST_TENANT:
        return name
    return "_h" + hashlib.sha256(namespace.encode()).hexdigest()[: _LONGEST_TENANT - 2]


def object_id(*parts: str | int) -> uuid.UUID:
    """The id of the object that ``parts`` name, the same whenever it is written again."""
    # surrogates cannot be encoded, and an id with one names nothing: it must not fail either
    return uuid.uuid5(_OBJECTS, json.dumps(parts))


def embedder_digest(identity: EmbedderIdentity) -> str:
    """Twelve hexadecimal digits that stand for an embedder."""
    return hashlib.sha256(identity.model_dump_json().encode()).hexdigest()[:12]


def generation(content_hash: str, parent: str) -> str:
    """What the passages of one version of a trajectory have in common: of this content, in place of ``parent``.

    The same write, tried again, makes the same generation; the same content, written later in place of another, does
    not, so that what belongs to a version that was removed never comes back with it.
    """
    return hashlib.sha256(json.dumps([content_hash, parent]).encode()).hexdigest()[:24]
