from __future__ import annotations

import pytest

from rag_tuned_memory.store.sqlite.search import quoted
from rag_tuned_memory.store.terms import MOST_TERMS, phrase_pattern, query_terms


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        ("?!", []),
        ("Disk disk DISK", ["Disk"]),
        ("What of INC-1042?", ["What", "of", "INC-1042", "INC", "1042"]),
        ("(/etc/nginx.conf)", ["etc/nginx.conf", "etc", "nginx", "conf"]),
        ("mia_li_3668", ["mia_li_3668", "mia", "li", "3668"]),
    ],
)
def test_terms(text: str, terms: list[str]) -> None:
    assert query_terms(text) == terms


def test_a_long_query_is_cut() -> None:
    assert len(query_terms(" ".join(f"w{i}" for i in range(1000)))) == MOST_TERMS


def test_quotes_are_doubled() -> None:
    assert quoted('a"b') == '"a""b"'


@pytest.mark.parametrize(
    ("phrase", "text", "found"),
    [
        ("INC-1042", "see inc-1042.", True),
        ("INC-1042", "see INC-10421", False),
        ("INC-1042", "see XINC-1042", False),
        ("a b", "x A \n b y", True),
        ("a.b", "a-b", False),
    ],
)
def test_phrases(phrase: str, text: str, found: bool) -> None:
    assert bool(phrase_pattern(phrase).search(text)) is found
