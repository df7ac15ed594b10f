"""What every store refuses, in the same words."""

from __future__ import annotations

from collections.abc import Sequence

from rag_tuned_memory.embedding.base import EmbedderIdentity, Vectors, checked
from rag_tuned_memory.errors import EmbedderMismatch, InvalidInput, TrajectoryNotFound
from rag_tuned_memory.store.base import Passage
from rag_tuned_memory.store.values import unit

RESTORE = "Restore a backup, or import the raw histories again with `rtm import`."
"""What to do about damaged trajectories."""
REINDEX = "Rebuild the projections with `rtm reindex`; the trajectories themselves are whole."
"""What to do about damage to anything else."""


def checked_passages(
    trajectory_id: str, passages: Sequence[Passage], vectors: Vectors, embedder: EmbedderIdentity
) -> Vectors:
    """The vectors of a trajectory's passages, each of length 1.

    Raises:
        InvalidVector: NaN, infinity or another shape.
        InvalidInput: a passage of another trajectory, two passages with the same key, or text that is not UTF-8.
    """
    array = unit(checked(vectors, rows=len(passages), dimension=embedder.dimension))
    keys = set()
    for number, one in enumerate(passages):
        place = f"passage {number} of trajectory {trajectory_id}"
        if one.trajectory_id != trajectory_id:
            raise InvalidInput(f"it belongs to trajectory {one.trajectory_id}", place=place)
        if one.key in keys:
            raise InvalidInput(f"a second passage has step {one.step} and chunk {one.chunk}", place=place)
        keys.add(one.key)
        _check_text(one, place)
    return array


def _check_text(passage: Passage, place: str) -> None:
    for name in ("text", "indexed", "actor", "tool", "ref"):
        try:
            (getattr(passage, name) or "").encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"{name} is not valid UTF-8 at character {error.start}", place=place) from None


def checked_ids(trajectory_ids: Sequence[str]) -> list[str]:
    """The distinct ids, in the order given.

    Raises:
        InvalidInput: one text in place of a list.
    """
    if isinstance(trajectory_ids, str):
        raise InvalidInput("trajectory_ids must be a list of ids, not one text", remedy="Write [id].")
    return list(dict.fromkeys(trajectory_ids))


def not_found(namespace: str, trajectory_id: str, place: str) -> TrajectoryNotFound:
    """The error for a trajectory that is not there."""
    return TrajectoryNotFound(
        f"there is no trajectory {trajectory_id} in namespace {namespace!r}",
        place=place,
        remedy="It may have been forgotten, or belong to another namespace.",
    )


def mismatch(namespace: str, stored: EmbedderIdentity, given: EmbedderIdentity, place: str) -> EmbedderMismatch:
    """The error for vectors of another embedder than the namespace's."""
    return EmbedderMismatch(
        f"namespace {namespace!r} holds vectors of [{_described(stored)}], these are of [{_described(given)}]",
        place=place,
        remedy="Use the first embedder, or rebuild the vectors with the second: `rtm reindex`.",
    )


def _described(identity: EmbedderIdentity) -> str:
    return f"{identity.model}, revision {identity.revision}, dimension {identity.dimension}, prefix {identity.prefix!r}"
