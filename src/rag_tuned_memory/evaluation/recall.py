"""How much of the evidence recall finds, on files in LoCoMo's form.

Evidence recall at k is the mean, over the questions that have evidence, of the share of their gold dialogue turns that
is among the first k recalled turns. Neighbours that recall adds count among the k.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
from pydantic import BaseModel, ConfigDict

from rag_tuned_memory.embedding.base import Embedder
from rag_tuned_memory.errors import InvalidInput, InvalidRecord
from rag_tuned_memory.formats.locomo import LocomoQuestion, read_locomo, read_locomo_questions
from rag_tuned_memory.recall import Indexed, Recall
from rag_tuned_memory.recall.fusion import Weights
from rag_tuned_memory.store.base import EpisodeStore

ADVERSARIAL = 5
"""LoCoMo's category of questions that the conversation does not answer; reported, but not part of the mean."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done (``sessions`` or ``questions``), how many are done, and how many there are."""

_TURN = re.compile(r"D:?(\d+):(\d+)")


class RecallRow(BaseModel):
    """One question and what was recalled for it."""

    model_config = ConfigDict(frozen=True)

    sample_id: str
    question: str
    category: int
    evidence: tuple[str, ...]
    recalled: tuple[str | None, ...]
    """The turns in rank order; None for what is no turn."""
    recall: float


async def evaluate_recall(
    path: Path,
    *,
    embedder: Embedder,
    store_factory: Callable[[], EpisodeStore],
    format: str = "locomo",
    k: int = 10,
    weights: Weights | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Record every conversation of ``path`` in a namespace of its own, ask all its questions, and count.

    Returns ``recall_at_k`` (categories 1 to 4), ``k``, ``questions``, ``by_category`` (category to ``recall_at_k`` and
    ``questions``), ``adversarial`` (category 5 in the same form) and ``rows`` (``RecallRow`` as plain data). The store
    that ``store_factory`` makes should be empty; it is closed at the end.

    Raises:
        InvalidInput: another format, ``k`` below 1, or a file without a question that has evidence.
        InvalidRecord: the file is not in LoCoMo's form; names the line.
    """
    if format != "locomo":
        raise InvalidInput(f"format is {format!r}; allowed is 'locomo'", place="format")
    questions = await anyio.to_thread.run_sync(read_locomo_questions, path)
    asked = [question for sample in questions.values() for question in sample if question.evidence]
    if not any(question.category != ADVERSARIAL for question in asked):
        raise InvalidInput("no question of categories 1 to 4 has evidence", place=str(path))
    store = store_factory()
    try:
        engine = Recall(store, embedder, weights=weights)
        await _record(engine, path, progress)
        rows = []
        for done, question in enumerate(asked, 1):
            rows.append(await _ask(engine, question, k))
            if progress:
                progress("questions", done, len(asked))
    finally:
        await store.close()
    return summary(rows, k)


def summary(rows: Sequence[RecallRow], k: int) -> dict[str, Any]:
    """The figures of ``rows``; see ``evaluate_recall``."""
    usual = [row for row in rows if row.category != ADVERSARIAL]
    categories = sorted({row.category for row in usual})
    return {
        **_mean(usual),
        "k": k,
        "by_category": {str(one): _mean(row for row in usual if row.category == one) for one in categories},
        "adversarial": _mean(row for row in rows if row.category == ADVERSARIAL),
        "rows": [row.model_dump(mode="json") for row in rows],
    }


def _mean(rows: Iterable[RecallRow]) -> dict[str, Any]:
    values = [row.recall for row in rows]
    return {"recall_at_k": sum(values) / len(values) if values else None, "questions": len(values)}


async def _record(engine: Recall, path: Path, progress: Progress | None) -> None:
    sessions = await anyio.to_thread.run_sync(lambda: list(read_locomo(path, namespace=str)))
    done = 0

    def report(one: Indexed) -> None:
        nonlocal done
        if one.error:
            raise InvalidRecord(str(one.error), path=str(path)) from one.error
        done += 1
        if progress:
            progress("sessions", done, len(sessions))

    await engine.index_many(sessions, progress=report)


async def _ask(engine: Recall, question: LocomoQuestion, k: int) -> RecallRow:
    found = await engine.recall(question.sample_id, question.question, k=k)
    recalled = tuple(_turn(result.ref) for result in found.results)
    gold = set(question.evidence)
    return RecallRow(
        sample_id=question.sample_id,
        question=question.question,
        category=question.category,
        evidence=question.evidence,
        recalled=recalled,
        recall=len(gold.intersection(recalled)) / len(gold),
    )


def _turn(ref: str | None) -> str | None:
    """A turn's id in the form that evidence has: without leading zeros."""
    match = _TURN.fullmatch(ref or "")
    return f"D{int(match[1])}:{int(match[2])}" if match else ref
