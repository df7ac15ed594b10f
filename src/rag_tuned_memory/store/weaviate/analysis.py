"""What Weaviate's BM25 is given: terms made here, so that ids and paths are found and no word is passed over.

The server's own tokenizers either cut ids and paths apart or keep punctuation, know no stems, and drop stop words. A
property of ours with one term a word, and the server's tokenizer set to white space, has none of these traps.
"""

from __future__ import annotations

import threading
import unicodedata
from functools import lru_cache

import snowballstemmer

from rag_tuned_memory.store.terms import query_terms, terms

_stemmer = snowballstemmer.stemmer("porter")
_stemming = threading.Lock()
"""A stemmer works in its own fields."""


def indexed_terms(text: str) -> str:
    """Every term of a passage's text, separated by spaces."""
    return " ".join(_folded(term) if compound else _stem(term) for term, compound in terms(text))


def searched_terms(text: str) -> list[str]:
    """The distinct terms of a query. Raises InvalidInput for text that is not valid UTF-8."""
    given = query_terms(text)
    return list(dict.fromkeys(_stem(term) if term.isalnum() else _folded(term) for term in given))


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    with _stemming:
        return str(_stemmer.stemWord(_folded(word)))


def _folded(term: str) -> str:
    """In lower case and without accents, as SQLite's ``unicode61`` does."""
    plain = unicodedata.normalize("NFKD", term.casefold())
    return "".join(one for one in plain if one.isprintable() and one != " " and not unicodedata.combining(one))
