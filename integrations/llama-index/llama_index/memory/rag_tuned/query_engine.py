"""A query engine that answers from a memory, by the way that its routing chooses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.types import TokenAsyncGen, TokenGen

from llama_index.memory.rag_tuned.binding import Binding, MemoryLike, NamespaceLike
from llama_index.memory.rag_tuned.nodes import to_nodes
from rag_tuned_memory import Answer, Filter, Route
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.routing.answering import AnswerChunk


class RagTunedQueryEngine(BaseQueryEngine):
    """Answers by the tuned model, by retrieval, by both or without memory.

    ``memory`` is a ``Memory``, or ``Memories`` with a ``namespace`` (text, or a callable that is asked at each call).
    ``route`` None lets the memory decide for each query; another one is taken as it is. At most ``k`` passages and
    ``token_budget`` tokens of them are put into a prompt, of those that ``where`` lets through; an answer has at most
    ``max_new_tokens`` tokens.

    A response's ``source_nodes`` are the passages that the model was shown. Its ``metadata`` says which way was taken:
    ``route``, ``reason``, ``adapter`` (None: the base model), ``abstained``, ``namespace``, ``evidence`` (ids of the
    episodes shown), and when all is said ``prompt_tokens``, ``answer_tokens``, ``seconds``. With ``streaming``, the
    text comes as it is generated, and all else is there before it.

    A memory that fails is an error here: an engine has no other answer to give.

    Raises:
        InvalidInput: no memory, or nobody said whose; no such route; an empty query.
        AdapterNotServable: ``route`` needs an adapter, and none serves.
        ModelNotPulled, StoreError, BackendError: see ``rag_tuned_memory.errors``.
    """

    def __init__(
        self,
        memory: MemoryLike,
        *,
        namespace: NamespaceLike = None,
        route: Route | None = None,
        streaming: bool = False,
        k: int = 4,
        token_budget: int = 320,
        where: Filter | None = None,
        max_new_tokens: int = 48,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager)
        self._bound = Binding(memory, namespace)
        self._streaming = streaming
        self._limits: dict[str, Any] = {"k": k, "token_budget": token_budget, "where": where}
        self._asked = {**self._limits, "route": _known(route), "max_new_tokens": max_new_tokens}

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """What is recalled for the query, whatever its route."""
        return to_nodes(self._bound.memory().recall(query_bundle.query_str, **self._limits))

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """As ``retrieve``."""
        return to_nodes(await self._bound.memory().arecall(query_bundle.query_str, **self._limits))

    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        memory = self._bound.memory()
        if not self._streaming:
            return _response(memory.answer(query_bundle.query_str, **self._asked), memory.namespace)
        chunks = memory.stream(query_bundle.query_str, **self._asked)
        told = _told(next(chunks).begun, memory.namespace)
        return StreamingResponse(_texts(chunks, told[1]), *told)

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        memory = self._bound.memory()
        if not self._streaming:
            return _response(await memory.aanswer(query_bundle.query_str, **self._asked), memory.namespace)
        chunks = memory.astream(query_bundle.query_str, **self._asked)
        told = _told((await anext(chunks)).begun, memory.namespace)
        return AsyncStreamingResponse(_atexts(chunks, told[1]), *told)


def _known(route: Route | None) -> Route | None:
    if route is None or route in list(Route):
        return None if route is None else Route(route)
    raise InvalidInput(f"no route is named {route!r}", place="route", remedy=f"Allowed are {', '.join(Route)}.")


def _response(answer: Answer, namespace: str) -> Response:
    nodes, metadata = _told(answer, namespace)
    return Response(answer.text, nodes, {**metadata, **_spent(answer)})


def _told(answer: Answer | None, namespace: str) -> tuple[list[NodeWithScore], dict[str, Any]]:
    """Source nodes and metadata of an answer, or of one that has only begun."""
    assert answer is not None
    shown = None if answer.abstained else answer.evidence
    metadata = {
        "route": answer.route.value,
        "reason": answer.reason,
        "adapter": answer.adapter,
        "abstained": answer.abstained,
        "namespace": namespace,
        "evidence": list(dict.fromkeys(one.trajectory_id for one in shown.results)) if shown else [],
    }
    return to_nodes(shown) if shown else [], metadata


def _spent(answer: Answer) -> dict[str, Any]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "answer_tokens": answer.answer_tokens,
        "seconds": round(answer.seconds, 4),
    }


def _texts(chunks: Iterator[AnswerChunk], metadata: dict[str, Any]) -> TokenGen:
    try:
        for chunk in chunks:
            if chunk.text:
                yield chunk.text
            if chunk.answer:
                metadata |= _spent(chunk.answer)
    finally:
        chunks.close()  # type: ignore[attr-defined]


async def _atexts(chunks: AsyncIterator[AnswerChunk], metadata: dict[str, Any]) -> TokenAsyncGen:
    try:
        async for chunk in chunks:
            if chunk.text:
                yield chunk.text
            if chunk.answer:
                metadata |= _spent(chunk.answer)
    finally:
        await chunks.aclose()  # type: ignore[attr-defined]
