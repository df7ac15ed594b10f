"""From a person's text to an FTS5 query. User text never becomes FTS syntax: every term is a quoted string."""

from __future__ import annotations

import re

from rag_tuned_memory.errors import InvalidInput

MOST_TERMS = 64
"""A longer query is cut: its later words seldom change what is found, and each costs a look-up."""

_WORD = re.compile(r"[^\W_]+")


def quoted(term: str) -> str:
    """``term`` as one FTS5 string: its words must follow each other."""
    return '"' + term.replace('"', '""').replace("\0", " ") + '"'


def query_terms(text: str) -> list[str]:
    """The distinct terms of ``text``, in order: each word, and each code, id or path as a whole too.

    ``INC-1042`` gives ``INC-1042`` (its parts next to each other), ``INC`` and ``1042``.

    Raises:
        InvalidInput: ``text`` is not valid UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"the query is not valid UTF-8 at character {error.start}") from None
    terms: dict[str, str] = {}
    for chunk in text.split():
        words = list(_WORD.finditer(chunk))
        if len(words) > 1:
            compound = chunk[words[0].start() : words[-1].end()]
            terms.setdefault(compound.casefold(), compound)
        for word in words:
            terms.setdefault(word[0].casefold(), word[0])
        if len(terms) >= MOST_TERMS:
            break
    return list(terms.values())[:MOST_TERMS]


def phrase_pattern(phrase: str) -> re.Pattern[str]:
    """Matches ``phrase`` in any case, with any white space between its words, where it is not part of longer words."""
    body = r"\s+".join(map(re.escape, phrase.split()))
    return re.compile(rf"(?<!\w){body}(?!\w)", re.IGNORECASE)
