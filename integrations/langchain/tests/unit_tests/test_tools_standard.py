"""LangChain's standard tests of tools, each of the memory's."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests

from incidents import episode
from langchain_rag_tuned_memory import memory_tools
from rag_tuned_memory import Memory

EXAMPLES: dict[str, dict[str, Any]] = {
    "recall_memory": {"query": "which disk is full?", "k": 2},
    "remember": {"text": "db-1 fills up on Mondays"},
    "forget_memory": {"episode_ids": ["nobody"]},  # what exists is forgotten only where somebody can confirm it
    "memory_feedback": {"episode_id": "{id}", "text": "that helped", "success": True},
}


class _Standard:
    name: str

    @pytest.fixture(autouse=True)
    def _filled(self, memory: Memory) -> None:
        recorded = memory.record(episode()).id
        self.tool_made = memory_tools(memory, names=[self.name])[0]
        self.example = {
            key: value.format(id=recorded) if isinstance(value, str) else value
            for key, value in EXAMPLES[self.name].items()
        }

    @property
    def tool_constructor(self) -> BaseTool:
        return self.tool_made

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return self.example


class TestRecallMemoryUnit(_Standard, ToolsUnitTests):
    name = "recall_memory"


class TestRememberUnit(_Standard, ToolsUnitTests):
    name = "remember"


class TestForgetMemoryUnit(_Standard, ToolsUnitTests):
    name = "forget_memory"


class TestMemoryFeedbackUnit(_Standard, ToolsUnitTests):
    name = "memory_feedback"


class TestRecallMemory(_Standard, ToolsIntegrationTests):
    name = "recall_memory"


class TestRemember(_Standard, ToolsIntegrationTests):
    name = "remember"


class TestForgetMemory(_Standard, ToolsIntegrationTests):
    name = "forget_memory"


class TestMemoryFeedback(_Standard, ToolsIntegrationTests):
    name = "memory_feedback"
