from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rag_tuned_memory.distil.curriculum import Curriculum, Item
from rag_tuned_memory.distil.packing import Row, Tokenised

examples = st.lists(
    st.builds(
        Tokenised.of,
        st.lists(st.integers(0, 3), min_size=1, max_size=6),
        st.lists(st.integers(0, 3), max_size=4),
        st.just(9),
    ),
    max_size=12,
)


def pack(given_: list[Tokenised], batch_tokens: int) -> list[Row]:
    """All rows of a curriculum that passes nothing over."""
    course = Curriculum([Item(tokens) for tokens in given_], batch_tokens=batch_tokens, budget=10_000)
    return list(iter(course.next_row, None))


def path(row: Row, position: int) -> tuple[int, ...]:
    tokens: list[int] = []
    while position >= 0:
        tokens.append(row.ids[position])
        position = row.parents[position]
    return tuple(reversed(tokens))


def learnt(row: Row) -> Counter[tuple[tuple[int, ...], int]]:
    """What is learnt: (all tokens before, the token)."""
    return Counter((path(row, at), target) for at, target in zip(row.predictors, row.targets, strict=True))


@given(examples, st.integers(1, 30))
def test_every_answer_token_is_learnt_after_its_own_prompt(given_: list[Tokenised], batch_tokens: int) -> None:
    wanted = Counter(
        (example.ids[:at], example.ids[at])
        for example in given_
        for at in range(example.answer_start, len(example.ids))
    )
    rows = pack(given_, batch_tokens)
    assert sum((learnt(row) for row in rows), Counter()) == wanted
    longest = max((len(example.ids) for example in given_), default=0)
    for row in rows:
        assert 0 < len(row.ids) <= max(batch_tokens, longest)
        alone = row.parents == list(range(-1, len(row.ids) - 1))
        assert len(row.ids) <= batch_tokens or alone


@given(examples)
def test_a_position_sees_its_own_past_and_nothing_else(given_: list[Tokenised]) -> None:
    for row in pack(given_, 40):
        visible = row.visible()
        assert visible.shape == (len(row.ids), len(row.ids))
        for position in range(len(row.ids)):
            seen = [other for other in range(len(row.ids)) if visible[position, other]]
            assert tuple(row.ids[other] for other in seen) == path(row, position)
            assert [row.depths[other] for other in seen] == list(range(row.depths[position] + 1))


def test_common_beginnings_are_computed_once() -> None:
    row = Row()
    row.add(Tokenised.of([1, 2, 3], [4], 9))
    second = Tokenised.of([1, 2, 5], [4], 9)
    assert row.new_positions(second) == 3
    row.add(second)
    assert row.ids == [1, 2, 3, 4, 9, 5, 4, 9]
    assert row.parents == [-1, 0, 1, 2, 3, 1, 5, 6]
    assert row.depths == [0, 1, 2, 3, 4, 2, 3, 4]
    assert row.new_positions(second) == 0
    assert row.ends == [2, 4]


def test_a_long_example_has_a_row_of_its_own() -> None:
    long = Tokenised.of(list(range(20)), [1], 9)
    short = Tokenised.of([50], [1], 9)
    assert [len(row.ids) for row in pack([short, long, short], 10)] == [3, 22, 3]
    assert pack([], 10) == []
