"""Evidence recall, on a conversation small enough to count by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rag_tuned_memory.embedding import HashingEmbedder
from rag_tuned_memory.errors import InvalidInput, InvalidRecord
from rag_tuned_memory.evaluation.recall import RecallRow, evaluate_recall, summary
from rag_tuned_memory.store import open_store

pytestmark = pytest.mark.anyio


def turns(session: int, *texts: str) -> list[dict[str, str]]:
    return [
        {"speaker": "Ann" if n % 2 else "Bob", "dia_id": f"D{session}:{n}", "text": text}
        for n, text in enumerate(texts, 1)
    ]


def question(text: str, category: int, *evidence: str) -> dict[str, Any]:
    return {"question": text, "answer": "x", "category": category, "evidence": list(evidence)}


def sample(name: str, topic: str) -> dict[str, Any]:
    return {
        "sample_id": name,
        "conversation": {
            "speaker_a": "Ann",
            "speaker_b": "Bob",
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": turns(1, f"I bought a {topic} yesterday", "Nice!", "It rained all week", "Same over here"),
            "session_2_date_time": "9:00 am on 9 June, 2023",
            "session_2": turns(2, "My sister plays the violin", "Since when?", "Since school", "Great"),
        },
        "qa": [
            question(f"What about the {topic}?", 4, "D1:1"),
            question("Who plays the violin since school?", 1, "D2:1", "D2:03", "D1:3; D1:4"),
            question("When did it snow in the violin school?", 5, "D2:1"),
            question("Nobody knows this", 3),
        ],
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "locomo.json"
    path.write_text(json.dumps([sample("conv-1", "kayak"), sample("conv-2", "tractor")]))
    return path


async def run(path: Path, **more: Any) -> dict[str, Any]:
    return await evaluate_recall(
        path, embedder=HashingEmbedder(), store_factory=lambda: open_store("sqlite:///:memory:"), **more
    )


async def test_shares_of_the_evidence_are_averaged_over_questions(file: Path) -> None:
    found = await run(file, k=3)
    rows = {(row["sample_id"], row["category"]): row for row in found["rows"]}
    assert len(rows) == 6  # the question without evidence is left out
    multi = rows["conv-1", 1]
    assert multi["evidence"] == ["D2:1", "D2:3", "D1:3", "D1:4"]
    assert len(multi["recalled"]) == 3
    assert multi["recall"] == len(set(multi["recalled"]) & set(multi["evidence"])) / 4
    assert rows["conv-1", 4]["recall"] == 1
    assert found["questions"] == 4
    assert found["k"] == 3
    assert found["recall_at_k"] == pytest.approx(sum(row["recall"] for key, row in rows.items() if key[1] != 5) / 4)
    assert found["by_category"]["4"] == {"recall_at_k": 1.0, "questions": 2}
    assert found["by_category"]["1"]["questions"] == 2
    assert "5" not in found["by_category"]
    assert found["adversarial"] == {"recall_at_k": 1.0, "questions": 2}


async def test_k_1_can_find_no_more_than_one_turn(file: Path) -> None:
    found = await run(file, k=1)
    assert all(len(row["recalled"]) == 1 for row in found["rows"])
    assert found["by_category"]["1"]["recall_at_k"] == 0.25


async def test_each_sample_is_searched_alone(file: Path) -> None:
    found = await run(file, k=50)
    assert all(len(row["recalled"]) == 8 for row in found["rows"])


async def test_progress_counts_sessions_and_questions(file: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    await run(file, progress=lambda *now: seen.append(now))
    assert [one for one in seen if one[0] == "sessions"] == [("sessions", n, 4) for n in range(1, 5)]
    assert [one for one in seen if one[0] == "questions"] == [("questions", n, 6) for n in range(1, 7)]


async def test_another_format_is_refused(file: Path) -> None:
    with pytest.raises(InvalidInput, match="allowed is 'locomo'"):
        await run(file, format="csv")


async def test_a_file_in_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('[{"messages": []}]')
    with pytest.raises(InvalidRecord, match=r"other\.json:1"):
        await run(path)


def keep_questions_from(file: Path, first: int) -> None:
    samples = json.loads(file.read_text())
    for one in samples:
        one["qa"] = one["qa"][first:]
    file.write_text(json.dumps(samples))


async def test_a_file_without_questions_is_refused(file: Path) -> None:
    keep_questions_from(file, 2)
    with pytest.raises(InvalidInput, match="no question"):
        await run(file)


def test_a_summary_of_no_adversarial_questions_says_so() -> None:
    row = RecallRow(sample_id="s", question="q", category=2, evidence=("D1:1",), recalled=(None, "D1:1"), recall=1)
    found = summary([row], 2)
    assert (found["recall_at_k"], found["adversarial"]) == (1, {"recall_at_k": None, "questions": 0})
