from __future__ import annotations

import json

from rag_tuned_memory.distil.curriculum import KNOWN, REVIEWED, Curriculum, Item
from rag_tuned_memory.distil.packing import Row, Tokenised

FACTS = 20


def items(rounds: int) -> list[Item]:
    """Twenty facts, asked round by round; each example has five positions of its own."""
    return [
        Item(Tokenised.of([fact, round_, 1, 2], [], 9), f"fact {fact}")
        for round_ in range(rounds)
        for fact in range(FACTS)
    ]


def play(course: Curriculum, *, hard: frozenset[str] = frozenset(), rows: int | None = None) -> list[Row]:
    """Train with losses that are high for hard facts and low for all others."""
    played: list[Row] = []
    while (rows is None or len(played) < rows) and (row := course.next_row()) is not None:
        facts = [f"fact {row.ids[position]}" for position, parent in enumerate(row.parents) if parent == -1]
        worst = [2.0 if fact in hard else 0.01 for fact in facts]
        course.learnt(row, [loss for loss in worst for _ in range(len(row.targets) // len(facts))])
        played.append(row)
    return played


def times_asked(rows: list[Row], fact: int) -> int:
    return sum(row.parents[at] == -1 and row.ids[at] == fact for row in rows for at in range(len(row.ids)))


def course(rounds: int = 40, budget: int = 100_000) -> Curriculum:
    return Curriculum(items(rounds), batch_tokens=20, budget=budget)


def test_known_facts_are_mostly_passed_over_and_the_others_never() -> None:
    lessons = course()
    rows = play(lessons, hard=frozenset({"fact 3", "fact 8"}))
    assert times_asked(rows, 3) == times_asked(rows, 8) == 40
    easy = [times_asked(rows, fact) for fact in range(FACTS) if fact not in (3, 8)]
    assert 0.6 * REVIEWED < sum(easy) / len(easy) / 40 < 1.6 * REVIEWED
    assert min(easy) >= 1
    assert lessons.known == FACTS - 2
    assert lessons.passed_over == 40 * FACTS - 80 - sum(easy)


def test_declining_is_learnt_once_most_facts_are_known() -> None:
    unknown = [Item(Tokenised.of([100, n], [], 9), declines=True) for n in range(40)]
    mixed = [item for pair in zip(items(40)[:400], unknown * 10, strict=True) for item in pair]
    hard = frozenset(f"fact {n}" for n in range(FACTS // 2 + 1))
    rows = play(Curriculum(mixed, batch_tokens=20, budget=100_000), hard=hard)
    assert times_asked(rows, 100) == 0
    rows = play(Curriculum(mixed, batch_tokens=20, budget=100_000))
    first = next(n for n, row in enumerate(rows) if 100 in row.ids)
    assert len({row.ids[0] for row in rows[:first]}) > 2
    assert times_asked(rows, 100) > 20


def test_a_fact_that_was_forgotten_is_asked_every_time_again() -> None:
    fact = [Item(Tokenised.of([n], [], 9), "fact") for n in range(200)]
    lessons = Curriculum(fact, batch_tokens=2, budget=10_000)
    for _ in range(3):
        row = lessons.next_row()
        assert row is not None
        lessons.learnt(row, [KNOWN / 2])
    before = lessons.passed_over
    row = lessons.next_row()
    assert row is not None
    lessons.learnt(row, [2 * KNOWN])
    passed = lessons.passed_over
    for _ in range(5):
        row = lessons.next_row()
        assert row is not None
        lessons.learnt(row, [2 * KNOWN])
    assert before <= passed == lessons.passed_over


def test_the_budget_ends_it() -> None:
    lessons = course(budget=300)
    rows = play(lessons, hard=frozenset(f"fact {n}" for n in range(FACTS)))
    assert 300 <= sum(len(row.ids) for row in rows) == lessons.spent < 320
    assert lessons.progress == 1
    assert lessons.next_row() is None


def test_it_goes_on_where_it_stopped() -> None:
    hard = frozenset({"fact 1", "fact 2"})
    whole = play(course(), hard=hard)
    begun = course()
    first = play(begun, hard=hard, rows=7)
    state = json.loads(json.dumps(begun.state()))
    resumed = course()
    resumed.resume(state)
    assert first + play(resumed, hard=hard) == whole


def test_nothing_to_learn() -> None:
    empty = Curriculum([], batch_tokens=10, budget=10)
    assert empty.next_row() is None
    assert empty.progress == 1
