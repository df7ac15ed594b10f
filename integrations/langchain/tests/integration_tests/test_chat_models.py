"""LangChain's standard integration tests of chat models, each way of choosing who answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from obedient import obey

from incidents import episode
from langchain_rag_tuned_memory import ChatRagTuned
from rag_tuned_memory import Memory
from rag_tuned_memory.serving.scripted import ScriptedBackend
from served_adapter import register


class _Standard(ChatModelIntegrationTests):
    default_model = "base"

    @pytest.fixture
    def backend(self) -> ScriptedBackend:
        return ScriptedBackend(obey)

    @pytest.fixture(autouse=True)
    def _filled(self, memory: Memory, tmp_path: Path) -> None:
        memory.record(episode())
        adapter = register(memory.registry, memory.namespace, tmp_path, ["one"], sequence=1).name
        memory.registry.promote(adapter, "good")
        self.memory, self.adapter = memory, adapter

    @property
    def chat_model_class(self) -> type[ChatRagTuned]:
        return ChatRagTuned

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"memory": self.memory, "model": self.default_model}

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return self.adapter


class TestBase(_Standard):
    """The base model takes each conversation as it is."""


class TestByRoute(_Standard):
    """The memory's routing chooses."""

    default_model = "route"
