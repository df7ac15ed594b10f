"""Reading a query: whether it asks for the big picture, and what it names."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from rag_tuned_memory.distil.views import find_identifiers

_BIG_PICTURE = re.compile(
    r"\bhow (many|often|frequent\w*|much of)\b|\bcount (all|the)\b|\b(number|count|total) of\b|\bin (all|total)\b"
    r"|\b(most|least) (common\w*|frequent\w*|often|used|reliable|likely)\b|\b(commonest|likeliest|busiest)\b"
    r"|\b(usual(ly)?|typical(ly)?|mostly|generally|normally|tends? to|as a rule|on average|overall|altogether)\b"
    r"|\b(trend|over time|pattern|recurring|in general|all in all|of all|across (all|the))\b"
    r"|\b(rising|falling|increasing|decreasing|more or less)\b|\bmore than any\b|\b(highest|lowest) (number|count)\b"
    r"|\bshould (i|we|be|one)\b|\bwhat (works|helps|fixes|solves)\b|\b(first|earliest|oldest) \w+\??$",
    re.IGNORECASE,
)
_OF_THE_MEMORY = re.compile(
    r"\b(the|your|this|our) (agent|agents|memory|history|record|records|episodes?|runs?)\b"
    r"|\b(do|did|can|could) you (still )?(remember|recall)\b|\bon record\b|\bremind me\b|\bwe (had|did|saw|learn\w*)\b"
    r"|\bdid we\b|\bhave we\b",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"\b(\d{1,2}) (January|February|March|April|May|June|July|August|September|October|November|December) (\d{4})\b"
)
_NAME = re.compile(r"(?<=\w )[A-Z][a-z]+(?: [A-Z][a-z]+)*\b")
_QUOTED = re.compile(r"[\"“]([^\"”]{2,60})[\"”]")


def is_big_picture(query: str) -> bool:
    """Whether the words ask about many episodes at once: counts, trends, what is usual, what to do in general."""
    return _BIG_PICTURE.search(query) is not None


def is_of_the_memory(query: str) -> bool:
    """Whether the words say that the memory is asked: what the agent did, what is on record, what we had."""
    return _OF_THE_MEMORY.search(query) is not None


def identifiers(query: str) -> list[str]:
    """Made-up names such as ``INC-1042`` or ``mia_li_3668``: what only a memory can know."""
    return find_identifiers(query)


def names(query: str) -> list[str]:
    """Proper names and quoted words that are no identifiers."""
    made_up = set(identifiers(query))
    without_dates = _DATE.sub(" ", query)
    found = [*_QUOTED.findall(query), *_NAME.findall(without_dates)]
    return [name for name in dict.fromkeys(found) if name not in made_up]


def dates(query: str) -> list[datetime]:
    """Days that the query names, as UTC midnights."""
    return [
        datetime.strptime(" ".join(parts), "%d %B %Y").replace(tzinfo=UTC)
        for parts in _DATE.findall(query)
        if 1 <= int(parts[0]) <= 31 and _exists(parts)
    ]


def _exists(parts: tuple[str, str, str]) -> bool:
    try:
        datetime.strptime(" ".join(parts), "%d %B %Y")
    except ValueError:
        return False
    return True
