from __future__ import annotations

import pytest
from asking import ask

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.serving.base import Message, Request
from rag_tuned_memory.serving.local.batching import Job, check_request, next_batch


def job(length: int, *, slot: int | None = None, prefix: tuple[int, ...] = (), stream: bool = False) -> Job:
    on_text = (lambda _: None) if stream else None
    return Job(ask("q", max_new_tokens=10), lambda _: None, on_text, ids=(1,) * length, prefix=prefix, slot=slot)


def batch(waiting: list[Job], *, rows: int = 4, tokens: int = 10_000) -> list[int]:
    return [waiting.index(chosen) for chosen in next_batch(waiting, max_rows=rows, max_tokens=tokens)]


def test_the_oldest_leads_and_the_nearest_in_length_follow() -> None:
    assert batch([job(50), job(500), job(45), job(60), job(400)], rows=3) == [0, 2, 3]


def test_a_stream_goes_first() -> None:
    assert batch([job(50), job(50), job(30, stream=True)], rows=2)[0] == 2


def test_padded_tokens_are_bounded_by_the_longest_row() -> None:
    assert batch([job(90), job(90), job(90)], tokens=200) == [0, 1]
    assert batch([job(40), job(190), job(40)], tokens=200) == [0, 2]
    assert batch([job(5000), job(10)], tokens=200) == [0], "one job may exceed the bound, alone"


def test_a_long_prompt_does_not_make_many_short_ones_long() -> None:
    waiting = [job(30) for _ in range(8)] + [job(300)]
    assert batch(waiting, rows=16) == list(range(8))
    assert batch([job(30), job(300)], rows=16) == [0, 1], "little is padded"


def test_adapters_mix_unless_one_fills_the_batch() -> None:
    assert batch([job(10, slot=1), job(10), job(10, slot=2)]) == [0, 1, 2]
    assert batch([job(10, slot=1), job(10), job(10, slot=1), job(10, slot=1)], rows=3) == [0, 2, 3]


def test_a_prefix_is_shared_within_one_adapter_only() -> None:
    prefix = (7,) * 80
    waiting = [job(10, prefix=prefix), job(10), job(10, prefix=prefix, slot=1), job(12, prefix=prefix)]
    assert batch(waiting) == [0, 3]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ask("q", max_new_tokens=0), "max_new_tokens must be at least 1"),
        (ask("q", temperature=-1.0), "temperature must be 0"),
        (ask("q", temperature=float("nan")), "temperature must be 0"),
        (ask("q", stop=("a", "")), "stop string cannot be empty"),
        (Request((Message("user", "q"),), shared_prefix=2), "shared_prefix 2 of 1 messages"),
    ],
)
def test_impossible_requests_are_refused(request_: Request, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        check_request(request_)
