import hashlib
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rag_tuned_memory.distil.dataset import Example, composition, read_dataset, write_dataset
from rag_tuned_memory.distil.dialogue import general_messages, memory_messages, system_prompt
from rag_tuned_memory.serving.base import Message


@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
    )
)
def test_what_is_written_is_read(pairs: list[tuple[str, str]]) -> None:
    from tempfile import TemporaryDirectory

    examples = [
        Example.make(memory_messages(q), a, "local", "matched", "f1") for q, a in [*pairs, ("\u2028\x85\r", "\n")]
    ]
    with TemporaryDirectory() as folder:
        path = Path(folder, "dataset.jsonl")
        digest = write_dataset(path, examples)
        assert read_dataset(path) == examples
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_file_is_in_the_sft_form(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d.jsonl", [Example.make(memory_messages("Why?", "<context>"), "So.", "global")])
    [line] = (tmp_path / "d.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "messages": [
            {"role": "system", "content": f"{system_prompt()}\n<context>"},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "So."},
        ],
        "kind": "global",
        "context": "none",
    }


def test_the_prompt_is_all_but_the_answer() -> None:
    example = Example.make(general_messages("Hi?"), "Hello.", "general")
    assert example.prompt == (Message("user", "Hi?"),)
    assert example.answer == "Hello."


def test_composition_counts_by_kind_and_context() -> None:
    ask = memory_messages("?")
    examples = [
        Example.make(ask, "a", "local"),
        Example.make(ask, "a", "local", "matched"),
        Example.make(ask, "a", "local", "matched"),
        Example.make(ask, "a", "unknown", "mismatched"),
    ]
    assert composition(examples) == {"local": 1, "local, matched context": 2, "unknown, mismatched context": 1}
