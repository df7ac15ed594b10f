"""Names of files and adapters for namespaces, which may be any text."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_PLAIN = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_HASH_CHARACTERS = 16
_LOOKS_HASHED = re.compile(rf".*-[0-9a-f]{{{_HASH_CHARACTERS}}}")


def namespace_slug(namespace: str) -> str:
    """A name for ``namespace`` that file systems, URLs and inference servers take: ``[a-z0-9-]``, 1 to 40 characters.

    A namespace that is such a name already is its own slug. Any other one gives what is readable of it and 64 bits of
    its SHA-256 (``Zoë/Prod`` gives ``zoe-prod-`` and 16 hexadecimal digits), so that two namespaces never share a
    slug: a plain namespace that ends as a hashed slug does is hashed as well.
    """
    if _PLAIN.fullmatch(namespace) and not _LOOKS_HASHED.fullmatch(namespace):
        return namespace
    ascii_text = unicodedata.normalize("NFKD", namespace).encode("ascii", "ignore").decode().lower()
    readable = re.sub(r"[^a-z0-9]+", "-", ascii_text)[: 39 - _HASH_CHARACTERS].strip("-") or "namespace"
    return f"{readable}-{hashlib.sha256(namespace.encode()).hexdigest()[:_HASH_CHARACTERS]}"
