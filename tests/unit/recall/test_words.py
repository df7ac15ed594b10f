from __future__ import annotations

import pytest

from rag_tuned_memory.recall.words import names, telling


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("What did Caroline research?", "Caroline research?"),
        ("When was INC-1042 fixed and by whom", "INC-1042 fixed"),
        ("What is Melanie's hobby?", "Melanie hobby?"),
        ("what is it?", "what is it?"),
        ("Why didn't the job run in May", "job run May"),
    ],
)
def test_function_words_are_left_out_unless_there_is_nothing_else(query: str, expected: str) -> None:
    assert telling(query) == expected


def test_names_ignore_case_and_function_words() -> None:
    assert names("The User of John Smith's") == {"user", "john", "smith"}
