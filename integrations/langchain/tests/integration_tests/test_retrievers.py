"""LangChain's standard tests of retrievers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_tests.integration_tests import RetrieversIntegrationTests

from incidents import episode
from langchain_rag_tuned_memory import RagTunedRetriever
from rag_tuned_memory import Memory


class TestRagTunedRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _filled(self, memory: Memory) -> Iterator[None]:
        for number in range(1, 5):
            memory.record(episode(number))
        self.memory = memory
        yield
        del self.memory

    @property
    def retriever_constructor(self) -> type[RagTunedRetriever]:
        return RagTunedRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"memory": self.memory}

    @property
    def retriever_query_example(self) -> str:
        return "which disk is full?"
