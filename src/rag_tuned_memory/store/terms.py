"""The terms of a text, and exact phrases in it: the same in every store."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rag_tuned_memory.errors import InvalidInput

MOST_TERMS = 64
"""A longer query is cut: its later words seldom change what is found, and each costs a look-up."""

_WORD = re.compile(r"[^\W_]+")


def terms(text: str) -> Iterator[tuple[str, bool]]:
    """Each term of ``text`` in order, and whether it is compound.

    Codes, ids and paths are terms as a whole too: ``INC-1042`` gives ``INC-1042`` (compound), ``INC`` and ``1042``.
    """
    for chunk in text.split():
        words = list(_WORD.finditer(chunk))
        if len(words) > 1:
            yield chunk[words[0].start() : words[-1].end()], True
        for word in words:
            yield word[0], False


def query_terms(text: str) -> list[str]:
    """The distinct terms of a query, in order, at most ``MOST_TERMS``.

    Raises:
        InvalidInput: ``text`` is not valid UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"the query is not valid UTF-8 at character {error.start}") from None
    distinct: dict[str, str] = {}
    for term, _ in terms(text):
        distinct.setdefault(term.casefold(), term)
        if len(distinct) >= MOST_TERMS:
            break
    return list(distinct.values())


def phrase_pattern(phrase: str) -> re.Pattern[str]:
    """Matches ``phrase`` in any case, with any white space between its words, where it is not part of longer words."""
    body = r"\s+".join(map(re.escape, phrase.split()))
    return re.compile(rf"(?<!\w){body}(?!\w)", re.IGNORECASE)
