from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from recollections import recollection, recollections, result

from rag_tuned_memory.recall import Recollection, assemble, estimate_tokens
from rag_tuned_memory.recall.budget import within


def characters(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


def odd(texts: Sequence[str]) -> list[int]:
    """A counter that is not additive: joining two texts may cost more or less than both."""
    return [sum(map(ord, text)) % 97 + len(text.split()) for text in texts]


@given(recollections(), st.integers(0, 900), st.sampled_from([None, characters, odd]), st.integers(0, 3))
def test_the_budget_holds_in_the_assembled_text(found: Recollection, budget: int, count: object, less: int) -> None:
    counter = count or estimate_tokens
    kept = within(found, max(0, budget - less), count)  # type: ignore[arg-type]
    text = assemble(kept)
    used = counter([text])[0] if text else 0  # type: ignore[operator]
    assert used <= max(0, budget - less)
    assert kept.tokens == used
    assert sorted(r.text for r in (*kept.results, *kept.dropped)) == sorted(r.text for r in found.results)
    assert [r for r in found.results if r in kept.results] == list(kept.results)


def test_better_results_are_kept_first_and_shorter_ones_still_tried() -> None:
    found = recollection(result("good " * 5, step=0), result("long " * 200, step=1), result("short", step=2))
    full = estimate_tokens([assemble(recollection(found.results[0], found.results[2]))])[0]
    kept = within(found, full, None)
    assert [r.step for r in kept.results] == [0, 2]
    assert [r.step for r in kept.dropped] == [1]
    assert kept.token_budget == full == kept.tokens


def test_without_a_budget_all_is_kept_and_counted() -> None:
    found = recollection(result("a"), result("b", step=1))
    kept = within(found, None, characters)
    assert kept.results == found.results
    assert kept.tokens == len(assemble(found))


def test_a_budget_below_the_fence_keeps_nothing() -> None:
    kept = within(recollection(result("a")), 3, None)
    assert (kept.results, kept.tokens, assemble(kept)) == ((), 0, "")


@given(st.text(max_size=200))
def test_estimates_grow_with_the_text(text: str) -> None:
    assert estimate_tokens([text, text + "!"])[0] < estimate_tokens([text + "!"])[0] + 1
    assert estimate_tokens([]) == []
