"""What was recalled as LangChain documents, and such documents as fenced text for a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.documents import Document
from pydantic import TypeAdapter

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.recall.prompt import assemble, neutralised
from rag_tuned_memory.recall.recollection import Recalled, Recollection
from rag_tuned_memory.store.base import Heading

_HEADING: TypeAdapter[Heading] = TypeAdapter(Heading)
_OF_EPISODE = ("goal", "outcome", "source", "content_hash")


def documents(found: Recollection) -> list[Document]:
    """What was recalled, best first; see ``RagTunedRetriever`` for the metadata."""
    return [_document(found, result) for result in found.results]


def format_documents(documents: Sequence[Document]) -> str:
    """The fenced text for a prompt, grouped by episode; empty for no documents.

    Raises:
        InvalidInput: a document that is none of ``RagTunedRetriever``.
    """
    read = [_read(document, f"documents.{position}") for position, document in enumerate(documents)]
    results = tuple(result for result, _ in read)
    headings = {heading.trajectory_id: heading for _, heading in read}
    return assemble(Recollection(namespace="", query="", k=len(results), results=results, headings=headings))


def _document(found: Recollection, result: Recalled) -> Document:
    heading = _HEADING.dump_python(found.headings[result.trajectory_id], mode="json")
    return Document(
        id=f"{result.trajectory_id}/{result.step}/{result.chunk}",
        page_content=neutralised(result.text),
        metadata={
            **result.model_dump(mode="json", exclude={"text"}),
            **{name: heading[name] for name in _OF_EPISODE},
            "episode_time": heading["time"],
            "namespace": found.namespace,
        },
    )


def _read(document: Document, place: str) -> tuple[Recalled, Heading]:
    told: dict[str, Any] = document.metadata
    try:
        result = Recalled.model_validate({**told, "text": document.page_content})
        heading = {name: told[name] for name in ("trajectory_id", *_OF_EPISODE)}
        return result, _HEADING.validate_python({**heading, "time": told["episode_time"]})
    except (KeyError, ValueError) as error:
        raise InvalidInput(
            "no document of RagTunedRetriever: its metadata is not complete",
            place=place,
            remedy="Format other retrievers' documents yourself.",
        ) from error
