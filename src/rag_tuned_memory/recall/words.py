"""Words of a query: which ones tell something."""

from __future__ import annotations

import re
from functools import lru_cache

_WORD = re.compile(r"[^\W_]+")
_POSSESSIVE = re.compile(r"(?<=\w)['’]s\b")

FUNCTION_WORDS = frozenset(
    word
    for line in (
        "a an the and or but nor so if then than that this these those there here",
        "i me my mine we us our ours you your yours he him his she her hers it its they them their theirs",
        "am is are was were be been being do does did doing done have has had having",
        "can could shall should would might must",
        "of in on at to from by for with about as into",
        "what which who whom whose when where why how not any some such",
        "s t d m ll re ve",
        "don didn doesn isn aren wasn weren hasn haven hadn couldn wouldn shouldn won",
    )
    for word in line.split()
)
"""English words that say how a question is put, not what it is about. Case-folded.

Those that can belong to a verb or tell a time (``work out``, ``after``) are kept as telling.
"""


def words(text: str) -> list[str]:
    """The words of ``text``, case-folded, in order."""
    return [word.casefold() for word in _WORD.findall(text)]


def telling(text: str) -> str:
    """``text`` without function words, for word search; ``text`` itself where nothing else is in it.

    White space separates: ids and paths (``INC-1042``) stay whole, possessives lose their ``'s``.
    """
    kept = [chunk for chunk in _POSSESSIVE.sub("", text).split() if not FUNCTION_WORDS.issuperset(words(chunk))]
    return " ".join(kept) or text


@lru_cache(maxsize=4096)
def names(text: str) -> frozenset[str]:
    """The telling words of a name or query, as a set."""
    return frozenset(words(text)) - FUNCTION_WORDS
