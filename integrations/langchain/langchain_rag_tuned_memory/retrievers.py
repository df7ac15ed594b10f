"""``RagTunedRetriever``: recalled passages as LangChain documents, with where they come from and why they were kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from pydantic import ConfigDict, Field, ValidationError

from langchain_rag_tuned_memory._namespaces import memory_of, with_namespace
from langchain_rag_tuned_memory.documents import documents
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.memory import Memories, Memory
from rag_tuned_memory.store.base import Filter
from rag_tuned_memory.trajectory import describe


class RagTunedRetriever(BaseRetriever):
    """Recalls from a memory.

    ``memory`` is a ``Memory``, or a ``Memories`` with a namespace for each call: ``namespace`` here,
    ``invoke(…, namespace=…)``, or ``config={"configurable": {"namespace": …}}``. At most ``k`` documents come back,
    and at most as many as ``token_budget`` tokens of prompt hold; ``where`` (a ``Filter`` or its fields) restricts
    them. ``k``, ``token_budget`` and ``where`` may be given with each call too.

    A document's text has the marks of chat templates defused; ``format_documents`` fences it for a prompt. Its metadata
    is JSON: trajectory id, step, chunk, ref, kind, actor, tool, time, score, signals and reason of the passage; goal,
    outcome, source and time of its episode; the namespace.

    Raises when called:
        InvalidNamespace: of many memories, none was named.
        InvalidInput: an empty query, ``k`` below 1, a negative budget, a filter that is none.
        ModelNotPulled, MissingExtra, StoreError: see ``rag_tuned_memory.errors``.
    """

    model_config = ConfigDict(extra="forbid")

    memory: Memory | Memories = Field(exclude=True, repr=False)
    namespace: str | None = None
    k: int = Field(default=4, ge=1)
    token_budget: int | None = Field(default=None, ge=0)
    where: Filter | None = None

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """See the class."""
        return super().invoke(input, config, **with_namespace(self.memory, self.namespace, config, kwargs))

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """See the class."""
        return await super().ainvoke(input, config, **with_namespace(self.memory, self.namespace, config, kwargs))

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        namespace: str | None = None,
        k: int | None = None,
        token_budget: int | None = None,
        where: Filter | Mapping[str, Any] | None = None,
    ) -> list[Document]:
        memory = memory_of(self.memory, self.namespace if namespace is None else namespace)
        return documents(memory.recall(query, **self._limits(k, token_budget, where)))

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        namespace: str | None = None,
        k: int | None = None,
        token_budget: int | None = None,
        where: Filter | Mapping[str, Any] | None = None,
    ) -> list[Document]:
        memory = memory_of(self.memory, self.namespace if namespace is None else namespace)
        return documents(await memory.arecall(query, **self._limits(k, token_budget, where)))

    def _limits(
        self, k: int | None, token_budget: int | None, where: Filter | Mapping[str, Any] | None
    ) -> dict[str, Any]:
        return {
            "k": self.k if k is None else k,
            "token_budget": self.token_budget if token_budget is None else token_budget,
            "where": self.where if where is None else _filter(where),
        }


def _filter(where: Filter | Mapping[str, Any]) -> Filter:
    """A filter, also where it was given as its fields."""
    try:
        return Filter.model_validate(where)
    except ValidationError as error:
        raise InvalidInput(describe(error), place="where") from error
