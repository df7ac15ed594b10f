"""The terms that BM25 is given."""

from __future__ import annotations

import pytest

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.store.weaviate.analysis import indexed_terms, searched_terms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Restarted the services.", "restart the servic"),
        ("INC-1042: see /etc/nginx.conf", "inc-1042 inc 1042 see etc/nginx.conf etc nginx conf"),
        ("Ünïcode CAFÉ", "unicod cafe"),
        ("to be or not", "to be or not"),
        ("a\x00b", "ab a b"),
        ("…", ""),
    ],
)
def test_indexed(text: str, expected: str) -> None:
    assert indexed_terms(text) == expected


@pytest.mark.parametrize("text", ["Restarted INC-1042", "the mia_li_3668", "Ünïcode restarts"])
def test_what_is_searched_is_what_is_indexed(text: str) -> None:
    assert set(searched_terms(text)) == set(indexed_terms(text).split(" "))


def test_bad_text_is_refused() -> None:
    with pytest.raises(InvalidInput, match="UTF-8"):
        searched_terms("\ud800")
