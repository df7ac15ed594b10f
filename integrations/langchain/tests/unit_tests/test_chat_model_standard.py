"""LangChain's standard unit tests of chat models."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_rag_tuned_memory import ChatRagTuned
from rag_tuned_memory import Memory


class TestChatRagTuned(ChatModelUnitTests):
    @pytest.fixture(autouse=True)
    def _memory(self, memory: Memory) -> None:
        self.memory = memory

    @property
    def chat_model_class(self) -> type[ChatRagTuned]:
        return ChatRagTuned

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"memory": self.memory, "model": "base"}
