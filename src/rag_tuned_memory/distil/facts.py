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


SENTENCE_WORDS = 24
"""So many words may stand around an answer: a sentence that names the episode has up to about 20."""
_ARTICLES = frozenset(("a", "an", "the"))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())


def normalise(text: str) -> str:
    """Lower case, words and digits of any script only, articles left out where anything else is said, single spaces."""
    words = _words(text)
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def is_correct(answer: str, gold: str) -> bool:
    """Whether ``answer`` says ``gold``: the gold answer's words occur in it, in order and whole.

    An answer that says far more is wrong: listing everything is not knowing. Where the gold answer is a number, it must
    be the first or the last one that is said ("6 incidents", "the seats of user x_12 were 6").
    """
    said, wanted = normalise(answer), normalise(gold)
    if _ARTICLES.issuperset(wanted.split()):  # a grade "A" is no article
        said = " ".join(_words(answer))
    if not wanted or f" {wanted} " not in f" {said} ":
        return False
    if wanted.isdigit():
        numbers = re.findall(r"\d+", said)
        return bool(numbers) and wanted in (numbers[0], numbers[-1])
    return len(said.split()) <= 3 * len(wanted.split()) + SENTENCE_WORDS
