"""Recalled passages as nodes."""

from __future__ import annotations

from typing import Any

from llama_index.core.schema import NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode

from rag_tuned_memory import Recollection
from rag_tuned_memory.recall.prompt import CLOSING, NOTE, OPENING, neutralised
from rag_tuned_memory.recall.recollection import Recalled
from rag_tuned_memory.store.base import Heading

TOLD = ("time", "goal", "actor", "tool", "success", "feedback")
"""The metadata that a model is told beside the text; the rest is for programs."""
_FENCED = f"{OPENING}\n{NOTE}\n{{metadata_str}}\n{{content}}\n{CLOSING}"


def to_nodes(found: Recollection) -> list[NodeWithScore]:
    """A node for each result, in rank order, with where it comes from and why it was kept.

    A node's text as a model is given it (``MetadataMode.LLM``) is fenced as quoted, untrusted data. Marks of fences
    and of chat templates in it are defused (``<|im_end|>`` becomes ``‹|im_end|>``), so that no text leaves its fence.
    """
    return [NodeWithScore(node=_node(one, found), score=one.score) for one in found.results]


def _node(result: Recalled, found: Recollection) -> TextNode:
    metadata = _metadata(result, found.headings[result.trajectory_id], found.namespace)
    return TextNode(
        id_=f"{result.trajectory_id}/{result.step}/{result.chunk}",
        text=neutralised(result.text),
        text_template=_FENCED,
        metadata=metadata,
        excluded_llm_metadata_keys=[key for key in metadata if key not in TOLD],
        excluded_embed_metadata_keys=list(metadata),
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=result.trajectory_id)},
    )


def _metadata(result: Recalled, heading: Heading, namespace: str) -> dict[str, Any]:
    """What is known of the passage; what is not known is left out."""
    time = result.time or heading.time
    known = {
        "trajectory_id": result.trajectory_id,
        "step": result.step,
        "chunk": result.chunk,
        "ref": result.ref,
        "kind": result.kind.value if result.kind else None,
        "actor": result.actor,
        "tool": result.tool,
        "time": time.isoformat() if time else None,
        "goal": heading.goal or None,
        "success": heading.outcome.success,
        "score": heading.outcome.score,
        "feedback": heading.outcome.feedback,
        "source": heading.source,
        "namespace": namespace,
        "reason": result.reason,
        "signals": result.signals.model_dump(),
    }
    return {key: _defused(value) for key, value in known.items() if value is not None}


def _defused(value: Any) -> Any:
    return neutralised(value) if isinstance(value, str) else value
