from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_tuned_memory.recall.fusion import Fusion, Weights
from rag_tuned_memory.recall.neighbours import adjacent, support
from rag_tuned_memory.recall.ranking import Ranking
from rag_tuned_memory.store.base import Candidate, Passage
from rag_tuned_memory.trajectory import StepKind

ONLY_OWN = Weights(neighbour=0, actor=0, episode=0)


def candidate(
    step: int, dense: float | None, bm25: float | None, *, trajectory: str = "t", chunk: int = 0, actor: str = "Ann"
) -> Candidate:
    passage = Passage(trajectory, step, chunk, StepKind.MESSAGE, f"text {step}", f"text {step}", actor)
    return Candidate(passage, dense, bm25)


def order(ranking: Ranking, k: int = 10) -> list[int]:
    return [result.step for result in ranking.results(k)]


def test_scores_are_stretched_to_the_candidates_and_averaged() -> None:
    fusion = Fusion.of([candidate(0, 0.8, None), candidate(1, 0.4, 6.0), candidate(2, 0.6, 3.0)], Weights())
    assert fusion.own(0.8, None) == pytest.approx(0.5)
    assert fusion.own(0.4, 6.0) == pytest.approx(0.5)
    assert fusion.own(0.6, 3.0) == pytest.approx(0.5)
    assert fusion.own(0.8, 6.0) == pytest.approx(1)
    assert fusion.own(0.2, None) == 0


def test_without_a_common_word_meaning_decides() -> None:
    assert order(Ranking("q", [candidate(0, 0.1, None), candidate(5, 0.3, None)], ONLY_OWN)) == [5, 0]


def test_a_single_candidate_is_scored() -> None:
    (result,) = Ranking("q", [candidate(0, 0.1, 2.0)], Weights()).results(10)
    assert 0 < result.score <= 1


def test_no_candidates_give_no_results() -> None:
    ranking = Ranking("q", [], Weights())
    assert ranking.results(10) == []
    assert ranking.missing(10) == []


def test_a_step_beside_a_good_one_is_raised() -> None:
    found = [candidate(4, 0.9, 9.0), candidate(5, 0.2, None), candidate(9, 0.3, None), candidate(20, 0.1, None)]
    assert order(Ranking("q", found, ONLY_OWN)) == [4, 9, 5, 20]
    ranking = Ranking("q", found, Weights(actor=0, episode=0))
    assert order(ranking) == [4, 5, 9, 20]
    result = ranking.results(2)[1]
    assert result.signals.neighbour == 1
    assert result.reason == "matched by meaning; next to step 4"


def test_the_speaker_that_the_query_names_is_raised() -> None:
    found = [candidate(0, 0.8, None, actor="Bob"), candidate(7, 0.75, None, actor="Ann"), candidate(15, 0.1, None)]
    assert order(Ranking("what did she say?", found, Weights(episode=0))) == [0, 7, 15]
    ranking = Ranking("what did ann say?", found, Weights(episode=0))
    assert order(ranking) == [7, 0, 15]
    assert "the query names Ann" in ranking.results(1)[0].reason


def test_an_episode_with_a_better_passage_is_raised() -> None:
    found = [
        candidate(0, 0.9, 5.0, trajectory="good"),
        candidate(9, 0.5, None, trajectory="good"),
        candidate(9, 0.52, None, trajectory="other"),
        candidate(0, 0.1, None, trajectory="other"),
    ]
    plain = [(r.trajectory_id, r.step) for r in Ranking("q", found, ONLY_OWN).results(3)]
    assert plain == [("good", 0), ("other", 9), ("good", 9)]
    raised = [(r.trajectory_id, r.step) for r in Ranking("q", found, Weights()).results(3)]
    assert raised == [("good", 0), ("good", 9), ("other", 9)]


def test_keys_beside_the_best_are_asked_for() -> None:
    ranking = Ranking("q", [candidate(3, 0.9, 1.0), candidate(4, 0.5, None), candidate(30, 0.1, None)], Weights())
    assert set(ranking.missing(2)) == {("t", 2, 0), ("t", 5, 0), ("t", 3, 1), ("t", 4, 1)}


def test_adjacency_stays_in_the_trajectory_and_out_of_the_header() -> None:
    assert set(adjacent(("t", 0, 0))) == {("t", 0, 1), ("t", 1, 0)}
    assert set(adjacent(("t", 3, 2))) == {("t", 3, 1), ("t", 3, 3), ("t", 2, 0), ("t", 4, 0)}
    assert set(adjacent(("t", -1, 0))) == {("t", -1, 1)}


def test_support_is_the_best_score_beside() -> None:
    best = support({("t", 1, 0): 0.2, ("t", 3, 0): 0.7})
    assert best["t", 2, 0] == (0.7, ("t", 3, 0))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 6),
            st.sampled_from(["s", "t"]),
            st.one_of(st.none(), st.floats(-1, 1)),
            st.one_of(st.none(), st.floats(0, 50)),
        ),
        max_size=14,
        unique_by=lambda row: row[:2],
    ),
    st.integers(1, 12),
)
def test_scores_lie_between_0_and_1_in_falling_order_and_k_bounds(
    rows: list[tuple[int, str, float | None, float | None]], k: int
) -> None:
    found = [candidate(step, dense, bm25, trajectory=name) for step, name, dense, bm25 in rows]
    results = Ranking("what did ann do", found, Weights()).results(k)
    assert len(results) == min(k, len(found))
    scores = [result.score for result in results]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 + 1e-9 for score in scores)
    again = Ranking("what did ann do", found[::-1], Weights()).results(k)
    assert [r.model_dump() for r in again] == [r.model_dump() for r in results]
