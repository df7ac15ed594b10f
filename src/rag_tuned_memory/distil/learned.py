"""What an adapter learned, fact by fact, in a file beside its weights: routing asks it before it trusts the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from rag_tuned_memory.distil.evaluation import ProbeRow
from rag_tuned_memory.distil.facts import Fact
from rag_tuned_memory.distil.phrasing import questions

LEARNED_FILE = "learned.json"


class LearnedFact(BaseModel):
    """One fact of the training set. ``internalised``: asked in new words, the adapter knew it; None: not probed."""

    model_config = ConfigDict(frozen=True)

    fact_id: str
    kind: Literal["local", "global"]
    question: str
    answer: str
    trajectory_ids: tuple[str, ...]
    internalised: bool | None = None


_FACTS = TypeAdapter(list[LearnedFact])


def learned_facts(facts: Sequence[Fact], rows: Sequence[ProbeRow]) -> list[LearnedFact]:
    """Each fact with one training question and what its probe showed."""
    probed = {row.fact_id: row.correct for row in rows if row.fact_id}
    return [
        LearnedFact(
            fact_id=fact.id,
            kind=fact.kind,
            question=questions(fact, "train")[0],
            answer=fact.answer,
            trajectory_ids=fact.trajectory_ids if fact.kind == "local" else (),
            internalised=probed.get(fact.id),
        )
        for fact in facts
    ]


def write_learned(folder: Path, facts: Sequence[LearnedFact]) -> None:
    """Write ``learned.json`` into ``folder``."""
    (folder / LEARNED_FILE).write_bytes(_FACTS.dump_json(list(facts)))


def read_learned(folder: Path) -> list[LearnedFact]:
    """Read it; empty where there is none."""
    path = folder / LEARNED_FILE
    return _FACTS.validate_json(path.read_bytes()) if path.exists() else []
