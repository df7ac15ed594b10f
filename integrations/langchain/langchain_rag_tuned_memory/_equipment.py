"""What an agent was equipped with, noted beside its episode: distillation shows the model the same again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import SystemMessage
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_rag_tuned_memory._recording import text_of
from rag_tuned_memory.capture import steps
from rag_tuned_memory.distil.acting import SYSTEM, TOOLS

_MOST_CHARACTERS = 8000
"""A longer system message is not noted: no adapter could be shown it at every turn."""


@dataclass(frozen=True, slots=True)
class Equipment:
    """The tools and the system message of a model call, without what the memory adds."""

    tools: Sequence[Any]
    system: SystemMessage | None

    def metadata(self) -> dict[str, Any]:
        """As the episode's metadata: tools by name, description and JSON schema; those of a provider are left out."""
        told = [convert_to_openai_tool(tool) for tool in self.tools]
        functions = [steps.jsonable(tool["function"]) for tool in told if isinstance(tool.get("function"), dict)]
        system = steps.storable(text_of(self.system)) if self.system is not None else ""
        return {
            **({TOOLS: functions} if functions else {}),
            **({SYSTEM: system} if 0 < len(system) <= _MOST_CHARACTERS else {}),
        }
