import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_tuned_memory.distil.facts import Fact, is_correct, normalise


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        ("Pool exhaustion.", "pool exhaustion", True),
        ("It was the pool exhaustion, I think.", "pool exhaustion", True),
        ("read_logs", "Read logs", True),
        ("exhaustion pool", "pool exhaustion", False),
        ("whirlpool exhaustion", "pool exhaustion", False),
        ("pool " * 40 + "pool exhaustion", "pool exhaustion", False),
        ("", "pool exhaustion", False),
        ("7", "7", True),
        ("There were 7 of 20.", "7", True),
        ("Of 20 there were 7.", "7", True),
        ("There were 5, 7 or 9.", "7", False),
        ("17", "7", False),
        ("anything", "", False),
        ("The grade of user x_1 was A", "A", True),
        ("The grade of user x_1 was B", "A", False),
        ("Это была утечка памяти.", "утечка памяти", True),
        ("Zoe\u0308", "Zoë", True),
        ("утечка", "память", False),
    ],
)
def test_an_answer_is_right_when_it_says_the_gold_answer(answer: str, gold: str, correct: bool) -> None:
    assert is_correct(answer, gold) is correct


@given(st.text())
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_the_id_is_of_what_is_asked() -> None:
    fact = Fact(kind="local", topic="cause", slots={"label": "x"}, answer="a", trajectory_ids=("1",))
    assert fact.id == fact.model_copy(update={"answer": "b", "trajectory_ids": ()}).id
    assert fact.id != fact.model_copy(update={"slots": {"label": "y"}}).id
    assert fact.id != fact.model_copy(update={"questions": ("Why x?",)}).id
