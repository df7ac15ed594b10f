from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_tuned_memory.serving.chat import encode
from rag_tuned_memory.serving.local.text import TextStream


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def run(tokenizer: Any, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream, shown = TextStream(tokenizer, stop), []
    for token_id in ids:
        shown.append(stream.push(token_id)[1])
        if stream.stopped:
            return shown, stream
    return [*shown, stream.finish()[1]], stream


def test_characters_come_whole(tokenizer: Any) -> None:
    ids = encode(tokenizer, "né 🎉!")
    shown, _ = run(tokenizer, ids)
    assert "".join(shown) == "né 🎉!"
    assert "🎉" in shown
    assert not any("�" in piece for piece in shown)


def test_an_unfinished_character_is_shown_as_replacement_at_the_end_only(tokenizer: Any) -> None:
    ids = encode(tokenizer, "ok🎉")[:-1]
    shown, _ = run(tokenizer, ids)
    assert "".join(shown[:-1]) == "ok"
    assert set(shown[-1]) == {"�"}


def test_nothing_of_a_stop_string_is_shown_and_what_only_began_like_one_is(tokenizer: Any) -> None:
    shown, stream = run(tokenizer, encode(tokenizer, "one END two ENDE three"), ("ENDE",))
    assert "".join(shown) == "one END two "
    assert stream.stopped
    shown, stream = run(tokenizer, encode(tokenizer, "one EN"), ("ENDE", "EN!"))
    assert "".join(shown) == "one EN"
    assert not stream.stopped


def test_the_first_of_several_stop_strings_counts(tokenizer: Any) -> None:
    shown, _ = run(tokenizer, encode(tokenizer, "a\nb."), (".", "\n"))
    assert "".join(shown) == "a"


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    stop=st.lists(st.text("ab\n", min_size=1), max_size=2),
)
def test_shown_text_is_the_text_before_a_stop(tokenizer: Any, text: str, stop: list[str]) -> None:
    shown, stream = run(tokenizer, encode(tokenizer, text), tuple(stop))
    cuts = [text.find(s) for s in stop if s in text]
    # Of two stop strings that overlap, the one that is complete first ends the text.
    assert "".join(shown) in ([text[:cut] for cut in cuts] or [text])
    assert stream.stopped == bool(cuts)
