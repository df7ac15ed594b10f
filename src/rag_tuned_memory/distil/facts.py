"""A fact: one question with its answer, computed from episodes, that can be asked in many words."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Literal

from pydantic import BaseModel, ConfigDict

from rag_tuned_memory.trajectory import canonical_json


class Fact(BaseModel):
    """What can be asked and what is true. ``topic`` names the group of phrasings, ``slots`` fill them.

    A written question (a teacher's) is itself in ``questions``; then the phrasings are not used.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["local", "global"]
    topic: str
    slots: dict[str, str]
    answer: str
    trajectory_ids: tuple[str, ...]
    questions: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Stable over runs: a hash of what is asked, not of the answer."""
        asked = canonical_json([self.kind, self.topic, self.slots, self.questions])
        return hashlib.sha256(asked).hexdigest()[:16]


def normalise(text: str) -> str:
    """Lower case, words and digits of any script only, articles left out where anything else is said, single spaces."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)


def is_correct(answer: str, gold: str) -> bool:
    """Whether ``answer`` says ``gold``: the gold answer's words occur in it, in order and whole.

    An answer that says more than three times as much, or another number first where the gold answer is a number,
    is wrong: listing everything is not knowing.
    """
    said, wanted = normalise(answer), normalise(gold)
    if not wanted or f" {wanted} " not in f" {said} ":
        return False
    if wanted.isdigit():
        numbers = re.findall(r"\d+", said)
        return bool(numbers) and numbers[0] == wanted
    return len(said.split()) <= 3 * len(wanted.split()) + 12
