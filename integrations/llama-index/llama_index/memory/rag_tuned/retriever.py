"""A retriever over a memory."""

from __future__ import annotations

import logging
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index.memory.rag_tuned.binding import Binding, MemoryLike, NamespaceLike
from llama_index.memory.rag_tuned.nodes import to_nodes
from llama_index.memory.rag_tuned.tolerance import OnError, check, tolerate
from rag_tuned_memory import Filter

logger = logging.getLogger(__name__)


class RagTunedRetriever(BaseRetriever):
    """Retrieves what an agent did: passages of recorded episodes, with where they come from and why they were kept.

    ``memory`` is a ``Memory``, or ``Memories`` with a ``namespace`` (text, or a callable that is asked at each call).
    At most ``k`` passages, and at most ``token_budget`` tokens of them, of those that ``where`` lets through.
    ``on_error`` says what happens when the memory fails: ``log`` returns no nodes, so that an agent goes on.

    Raises:
        InvalidInput: no memory, or nobody said whose; a bad ``k``, budget or query, whatever ``on_error`` says.
    """

    def __init__(
        self,
        memory: MemoryLike,
        *,
        namespace: NamespaceLike = None,
        k: int = 10,
        token_budget: int | None = None,
        where: Filter | None = None,
        on_error: OnError = "log",
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(callback_manager=callback_manager, verbose=verbose)
        self._bound = Binding(memory, namespace)
        self._asked: dict[str, Any] = {"k": k, "token_budget": token_budget, "where": where}
        self._on_error = check(on_error)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        memory = self._bound.memory()
        try:
            return to_nodes(memory.recall(query_bundle.query_str, **self._asked))
        except Exception as error:
            return self._nothing(error)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        memory = self._bound.memory()
        try:
            return to_nodes(await memory.arecall(query_bundle.query_str, **self._asked))
        except Exception as error:
            return self._nothing(error)

    def _nothing(self, error: Exception) -> list[NodeWithScore]:
        tolerate(error, self._on_error, logger, "Nothing was retrieved from memory")
        return []
