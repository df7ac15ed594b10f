"""What routing decides and what an answer carries."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from rag_tuned_memory.recall.recollection import Recollection


class Route(StrEnum):
    """Who answers: the tuned model, the base model beside recalled text, the tuned model beside it, or no memory."""

    TUNED = "tuned"
    RETRIEVAL = "retrieval"
    BOTH = "both"
    NONE = "none"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class Features(_Value):
    """What the choice was made from."""

    big_picture: bool
    """Asks about all episodes (counts, trends, what is usual) rather than about one."""
    asks_memory: bool = False
    """Says in so many words that the memory is asked ("did we", "on record", "the agent")."""
    entities: tuple[str, ...] = ()
    """Identifiers and names that the query mentions."""
    known_entities: tuple[str, ...] = ()
    """Those that occur in the store."""
    best_dense: float | None = None
    """Highest cosine similarity of the query to a recalled passage."""
    margin: float | None = None
    """Fused score of the best passage minus that of the second episode's best."""
    learned_similarity: float | None = None
    """Highest cosine similarity of the query to a question that the serving adapter learned."""
    adapter: str | None = None
    newer_episodes: int = 0
    """Trajectories recorded after the adapter's watermark."""
    fresh: bool = False
    """What the query is about was recorded after the adapter's watermark."""
    entropy: float | None = None
    """Mean entropy of the tuned model's answer, nats a token; None when it was not asked alone."""
    confidence: float | None = None
    """Probability of the least certain token of that answer."""


class Decision(_Value):
    """A route with its reason, for people, and the features, for programs."""

    route: Route
    abstain: bool = False
    reason: str
    features: Features


class Routing(_Value):
    """A decision and what was recalled for it; nothing was generated.

    ``decision.features.adapter`` is the version that a tuned answer would come from.
    """

    decision: Decision
    recollection: Recollection


class Answer(_Value):
    """What was answered, by which way, from what, and why."""

    text: str
    route: Route
    abstained: bool
    reason: str
    features: Features
    adapter: str | None = None
    """The version that answered; None: the base model, or nobody."""
    evidence: Recollection | None = None
    prompt_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0
